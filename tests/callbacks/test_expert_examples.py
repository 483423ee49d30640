"""What the pictures of example rows show is what those rows were routed to."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mhmoe_mm.callbacks.expert_examples import ExpertExamples
from mhmoe_mm.callbacks.routing_dump import RoutingDump
from mhmoe_mm.callbacks.routing_file import RoutingReader
from mhmoe_mm.callbacks.routing_rows import IMAGE, TEXT, Turns, row_of, whole_text
from mhmoe_mm.inputs.spelling import Spelling
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from mhmoe_mm.tasks.vqa import VQA
from tests.callbacks.test_routing_dump import TASKS, evaluated
from tests.language import rows_of_text, small_decoder
from tests.tasks import batches
from tests.tasks.test_captioning import tokenizer_file
from tests.tasks.training import QUIET, loader


class Texts(ExpertExamples):
    """With a tokenizer, though no data module has one."""

    def __init__(self, path: str, **options: int):
        super().__init__(**options)
        self._spelling = Spelling(Tokenizer(path))


def images_of(logger: TensorBoardLogger) -> dict[str, int]:
    """By name: pictures in TensorBoard."""
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    return {name: len(events.Images(name)) for name in events.Tags()["images"]}


def test_patches_and_words_are_images_in_tensorboard(tmp_path):
    make, draw = TASKS["pretraining"]
    logger = TensorBoardLogger(tmp_path)
    watch = Texts(tokenizer_file(tmp_path))
    evaluated(make(), [draw(3), draw(2)], tmp_path, watch, logger=logger)
    assert images_of(logger) == {"val/experts/patches": 1, "val/experts/words": 1}
    kept = sorted(path.name for path in (tmp_path / "lightning_logs/version_0/experts").iterdir())
    assert kept == ["patches-val-00000000.png", "words-val-00000000.png"]


def test_a_language_model_has_words_alone_and_none_without_a_tokenizer(tmp_path):
    torch.manual_seed(0)
    for watch, expected in (
        (Texts(tokenizer_file(tmp_path, batches.VOCAB)), {"val/experts/words": 1}),
        (ExpertExamples(), {}),
    ):
        logger = TensorBoardLogger(tmp_path, name=f"{len(expected)}")
        task = LanguageModeling(small_decoder())
        evaluated(task, [rows_of_text(3)], tmp_path, watch, logger=logger)
        assert images_of(logger) == expected


def test_a_patch_has_the_colour_of_its_expert(tmp_path, monkeypatch):
    """Two patches of an image look alike if, and only if, the same expert was chosen for both."""
    drawn = []
    monkeypatch.setattr(
        "mhmoe_mm.callbacks.examples_picture._over", lambda axis, row, table: drawn.append(table)
    )
    task = VQA(batches.small_net(), [f"a{i}" for i in range(7)])
    evaluated(task, [batches.questions(3)], tmp_path, ExpertExamples(images=2), RoutingDump())
    folder = tmp_path / "lightning_logs/version_0"
    (chunk,) = RoutingReader(folder / "routing/val-00000000")
    counts, choices = drawn[::2], drawn[1::2]
    assert len(counts) == len(choices) == 2
    for number in range(2):
        row = row_of(chunk, number)
        (name,) = row.expert
        found = row.experts_of(row.part(IMAGE), name)
        assert found is not None
        first = found[:, 0, 0]
        same = (choices[number][:, None] == choices[number][None]).all(axis=2)
        assert (same == (first[:, None] == first[None])).all()
        distinct = np.array([len(set(patch.flatten().tolist())) for patch in found])
        assert (row.diversity(row.part(IMAGE), {name: 5}) == distinct).all()
        same = (counts[number][:, None] == counts[number][None]).all(axis=2)
        assert (same == (distinct[:, None] == distinct[None])).all()
        pixel = batches.questions(3).pixel[number].numpy()
        assert row.pixel is not None
        assert (row.pixel == pixel).all()


def test_a_part_of_a_row_is_that_part(tmp_path):
    torch.manual_seed(0)
    evaluated(LanguageModeling(small_decoder()), [rows_of_text(3)], tmp_path, RoutingDump())
    (chunk,) = RoutingReader(tmp_path / "lightning_logs/version_0/routing/val-00000000")
    whole, part = row_of(chunk, 1), row_of(chunk, 1, slice(2, 5))
    assert part.tokens.vocabulary_id.tolist() == whole.tokens.vocabulary_id[2:5].tolist()
    name = next(iter(whole.expert))
    expected = whole.experts_of(np.array([2, 3, 4]), name)
    found = part.experts_of(part.part(TEXT), name)
    assert expected is not None
    assert found is not None
    assert found.tolist() == expected.tolist()
    assert part.experts_of(np.array([1, 7]), name) is None


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([5, 6, 7, 8, 2, 5, 6, 7, 8, 2, 5], slice(5, 10)),
        ([0, 5, 6, 2], slice(0, 4)),
        ([5, 2], slice(0, 2)),
        ([5, 6, 2, 5, 6, 7, 8, 9], slice(3, 8)),
    ],
)
def test_a_text_of_a_stream_is_a_whole_one(ids, expected):
    assert whole_text(ids, 2) == expected


def test_kinds_take_turns_and_keys_come_once():
    turns = Turns[int](2)
    for number, (kind, key) in enumerate(zip("aaabbca", "stutvww", strict=True)):
        if turns.wants(kind, key):
            turns.take(number, kind, key)
    assert turns.in_turn() == [0, 4, 5, 1]
    assert len(turns) == 4


def test_pictures_are_not_made_of_a_dense_net_and_numbers_are_checked(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    layout = SharedLayout(dense=partial(GeluFFN, hidden=29))
    net = BEiT3(layout, batches.SIZE, batches.PATCH, batches.VOCAB, 28, 1, 2, batches.SEQ)
    task = VQA(net, ["a", "b"])
    evaluated(task, [batches.questions(3, answers=2)], tmp_path, ExpertExamples(), logger=logger)
    assert images_of(logger) == {}
    with pytest.raises(ValueError, match="0 or more, got -1 and 8"):
        ExpertExamples(images=-1)


def test_a_training_keeps_a_picture_for_every_validation(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    watch = Texts(tokenizer_file(tmp_path), images=1, sentences=1)
    settings = QUIET | {"logger": logger, "callbacks": [watch], "max_steps": 2}
    make, draw = TASKS["vqa"]
    trainer = Trainer(**settings, val_check_interval=1, num_sanity_val_steps=1)
    trainer.fit(make(), loader([draw(3)] * 2), loader([draw(3), draw(2)]))
    assert images_of(logger) == {"val/experts/patches": 2, "val/experts/words": 2}
    with Image.open(tmp_path / "lightning_logs/version_0/experts/words-val-00000002.png") as found:
        assert found.width > 500
