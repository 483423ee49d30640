"""What is kept of an evaluation, counted again, is what the loads say."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from mhmoe_mm.callbacks.routing_dump import RoutingDump
from mhmoe_mm.callbacks.routing_file import RoutingReader
from mhmoe_mm.callbacks.routing_tokens import CLASSES, answer_type, patch_energy
from mhmoe_mm.models.generation import Decoding
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.models.multiway import PaperLayout
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA
from tests.callbacks.recount import by_language, logged, recount
from tests.language import rows_of_text, small_decoder
from tests.ranks import run_on_two_ranks
from tests.tasks import batches
from tests.tasks.test_captioning import tokenizer_file
from tests.tasks.training import QUIET, loader

FUSED = partial(PaperLayout, fused_layers=1)
TASKS = {
    "pretraining": (
        lambda: MaskedPretraining(batches.small_net(FUSED), NormalizedPixels(batches.PATCH)),
        batches.batch,
    ),
    "vqa": (lambda: VQA(batches.small_net(), [f"a{i}" for i in range(7)]), batches.questions),
    "retrieval": (lambda: Retrieval(batches.small_net()), batches.captioned),
    "nlvr2": (lambda: NLVR2(batches.small_net()), batches.statements),
    "classes": (lambda: ImageClassification(batches.small_net(), 5), batches.classes),
}


def evaluated(task, given, folder, *callbacks, **options):
    torch.manual_seed(0)
    settings = QUIET | {"logger": CSVLogger(folder), "callbacks": list(callbacks)} | options
    trainer = Trainer(**settings)
    trainer.validate(task, loader(given), verbose=False)
    return trainer


@pytest.mark.parametrize("name", TASKS)
def test_a_recount_of_the_file_equals_the_logged_loads(name, tmp_path):
    make, draw = TASKS[name]
    counted_again(make, draw, tmp_path)


def test_captions_that_are_written_count_as_in_the_loads(tmp_path):
    tokenizer = tokenizer_file(tmp_path)
    decoding = Decoding(num_beams=2, max_tokens=batches.SEQ)
    counted_again(
        lambda: Captioning(batches.small_net(), tokenizer, decoding=decoding),
        batches.captions,
        tmp_path,
    )


def counted_again(make, draw, tmp_path):
    torch.manual_seed(0)
    trainer = evaluated(
        make(), [draw(3), draw(2, seed=5)], tmp_path, ExpertActivation(), RoutingDump()
    )
    folder = tmp_path / "lightning_logs/version_0"
    assert trainer.log_dir == str(folder)
    found, expected = recount(folder / "routing/val-00000000"), logged(folder / "experts.jsonl")
    assert found == expected
    assert found[0]


def test_languages_are_told_apart_as_in_the_loads(tmp_path):
    torch.manual_seed(0)
    task = LanguageModeling(small_decoder())
    given = [rows_of_text(5), rows_of_text(4, seed=3)]
    given[1].valid[2] = False
    evaluated(task, given, tmp_path, ExpertActivation(), RoutingDump())
    folder = tmp_path / "lightning_logs/version_0"
    assert by_language(folder / "routing/val-00000000") == logged(folder / "experts.jsonl")


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_keep_together_what_one_keeps_sharded_too(tmp_path):
    run_on_two_ranks("tests.callbacks.dump_ranks", tmp_path)
    names = ("one", "two", "sharded")
    one, *others = (tmp_path / name / "lightning_logs/version_0" for name in names)
    expected = recount(one / "routing/val-00000000")
    assert expected == logged(one / "experts.jsonl")
    for folder in others:
        kept = folder / "routing/val-00000000"
        assert sorted(path.name for path in kept.iterdir()) == ["rank-0.npz", "rank-1.npz"]
        assert recount(kept) == logged(folder / "experts.jsonl") == expected
        assert (folder / "experts/patches-val-00000000.png").is_file()


def test_what_is_read_back_is_what_was_written(tmp_path):
    make, draw = TASKS["pretraining"]
    evaluated(make(), [draw(3)], tmp_path, RoutingDump())
    file = tmp_path / "lightning_logs/version_0/routing/val-00000000/rank-0.npz"
    image, text, pair = RoutingReader(file)
    assert image.grid == pair.grid == (4, 4)
    assert text.grid == (0, 0)
    assert [c.samples.task[0] for c in (image, text, pair)] == [
        "masked image", "masked text", "masked pair",
    ]  # fmt: skip
    part = draw(3)
    real = ~part.text.pad.numpy()
    assert text.tokens.vocabulary_id.tolist() == part.text.token.numpy()[real].tolist()
    assert text.tokens.clean.tolist() == (part.text.target.numpy()[real] == -100).tolist()
    assert text.samples.language == ["en"] * 4
    own = pair.tokens.patch >= 0
    hidden = np.array(CLASSES)[pair.tokens.token_class[own]] == "masked patch"
    assert hidden.tolist() == part.pair.masked.flatten().tolist()
    assert pair.tokens.clean[own].tolist() == (~hidden).tolist()
    weights = next(iter(pair.layers.values())).weight
    assert weights is not None
    assert weights.shape == next(iter(pair.layers.values())).expert.shape
    assert next(iter(next(iter(RoutingReader(file, weights=False))).layers.values())).weight is None


def test_only_so_many_batches_of_every_nth_validation_are_kept(tmp_path):
    make, draw = TASKS["vqa"]
    dump = RoutingDump(every_n_validations=2, batches=1)
    settings = QUIET | {"logger": CSVLogger(tmp_path), "callbacks": [dump], "max_steps": 3}
    trainer = Trainer(**settings, val_check_interval=1, num_sanity_val_steps=2)
    trainer.fit(make(), loader([draw(3)] * 3), loader([draw(3), draw(2)]))
    kept = sorted((tmp_path / "lightning_logs/version_0/routing").iterdir())
    assert [path.name for path in kept] == ["val-00000001", "val-00000003"]
    assert [len(list(RoutingReader(path))) for path in kept] == [1, 1]


def test_damage_and_other_files_are_told(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    with pytest.raises(ValueError, match=r"other\.npz is not a file of recorded routing"):
        RoutingReader(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"holds no \.npz"):
        RoutingReader(tmp_path / "..")
    make, draw = TASKS["vqa"]
    evaluated(make(), [draw(3)], tmp_path, RoutingDump())
    file = tmp_path / "lightning_logs/version_0/routing/val-00000000/rank-0.npz"
    content = bytearray(file.read_bytes())
    middle = slice(len(content) // 3, len(content) // 3 + 300)
    content[middle] = bytes(300)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        list(RoutingReader(file))


def test_the_table_has_a_row_for_every_choice(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    make, draw = TASKS["vqa"]
    evaluated(make(), [draw(3), draw(2)], tmp_path, RoutingDump("parquet"), RoutingDump())
    folder = tmp_path / "lightning_logs/version_0/routing/val-00000000"
    rows = parquet.read_table(folder / "rank-0.parquet").to_pylist()
    found: dict = {}
    for row in rows:
        if row["expert"] >= 0:
            key = (row["layer"], row["modality"])
            found.setdefault(key, {}).setdefault(row["expert"], 0)
            found[key][row["expert"]] += 1
    assert found == {key: dict(count) for key, count in recount(folder)[0].items()}
    assert max(row["sample"] for row in rows) == 4
    assert {(row["head"], row["choice"]) for row in rows} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_the_heatmap_is_an_image_in_tensorboard_and_a_line_tells_of_the_experts(tmp_path, capsys):
    make, draw = TASKS["vqa"]
    logger = TensorBoardLogger(tmp_path)
    evaluated(make(), [draw(3)], tmp_path, ExpertActivation(), logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    (picture,) = events.Images("val/experts/load")
    assert picture.width > 300
    (line,) = [one for one in capsys.readouterr().out.splitlines() if one.startswith("experts ")]
    assert "step 0" in line
    assert "even shares (blocks.1.ffn.shared, expert " in line


def test_the_energy_of_a_patch_is_that_of_its_own_steps():
    image = -torch.ones(1, 3, 10, 10)
    image[0, :, 2, 7] = 1.0
    energy = patch_energy(image, 2)[0]
    # The pixel above and the one to the left differ from it by 1; it, from two others by 1 each.
    assert energy.tolist() == pytest.approx([0, ((1 + 1 + 2) / 25) ** 0.5, 0, 0])


def test_answers_have_the_types_of_vqa():
    assert [answer_type(a) for a in ("yes", "no", "7", "2.5", "blue", "")] == [
        "yes/no", "yes/no", "number", "number", "other", "other",
    ]  # fmt: skip
