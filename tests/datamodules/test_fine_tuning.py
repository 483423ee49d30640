"""The data module for fine-tuning, over all tasks: rows, epochs, ranks, resuming, errors."""

import json
from itertools import chain

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.classification import ClassificationSamples
from datamodules.decoders import Limits
from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import CaptioningSamples, RetrievalSamples
from datamodules.index import ShardError
from datamodules.loading import Loading
from datamodules.nlvr2 import Nlvr2Samples
from datamodules.pictures import PictureSamples
from datamodules.sources import Source
from datamodules.transforms import View
from datamodules.vqa import VqaSamples
from tests.datamodules import task_shards

COUNTS = [5, 7, 3, 8]
VIEW = View(size=16, patch=8)
SERIAL = Loading(threads=0, window=2)
MEMBERS = {
    "vqa": task_shards.vqa_members,
    "nlvr2": task_shards.nlvr2_members,
    "retrieval": task_shards.caption_members,
    "captioning": task_shards.caption_members,
    "classification": task_shards.class_members,
    "pictures": lambda number, content: {"png": content["png"]},
}
TASKS = sorted(MEMBERS)
ROWS = {
    # training, evaluation; counted from what task_shards says
    "vqa": (45, 56),
    "nlvr2": (45, 45),
    "retrieval": (23, 66),
    "captioning": (23, 23),
    "classification": (23, 23),
    "pictures": (23, 23),
}


@pytest.fixture
def make_task(tmp_path):
    """make_task(name) -> the task with its lists of names written to disk."""

    def make(name):
        (tmp_path / "answers.json").write_text(json.dumps(task_shards.ANSWERS))
        (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
        return {
            "vqa": lambda: VqaSamples(str(tmp_path / "answers.json")),
            "nlvr2": Nlvr2Samples,
            "retrieval": RetrievalSamples,
            "captioning": CaptioningSamples,
            "classification": lambda: ClassificationSamples(str(tmp_path / "classes.json")),
            "pictures": PictureSamples,
        }[name]()

    return make


@pytest.fixture
def make_module(make_shards, make_task, tokenizer_path):
    """make_module(name, batch_size=3, change=None, **options)"""

    def make(name, batch_size=3, change=None, **options):
        def members(number, content):
            made = MEMBERS[name](number, content)
            return change(number, made) if change else made

        source = Source(str(make_shards(COUNTS, change=members)), batch_size)
        options = {"loading": SERIAL, "view": VIEW, "seed": 5, "val": source} | options
        return FineTuningDataModule(source, make_task(name), tokenizer_path, **options)

    return make


def epoch_of(module, epoch, rank=0, world=1):
    loader = module.training_loader(rank, world)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def rows_of(batches):
    """Every valid row as something that can be compared and counted."""
    rows = []
    for batch in batches:
        for number in range(len(batch.key)):
            if batch.valid[number]:
                fields = (value[number] for value in batch)
                rows.append(tuple(str(f.tolist() if torch.is_tensor(f) else f) for f in fields))
    return rows


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("task", TASKS)
def test_an_epoch_counts_rows(make_module, task):
    module = make_module(task)
    training, evaluation = ROWS[task]
    assert len(module.training_loader()) == training // 3
    assert len(module.evaluation_loader("val")) == -(-evaluation // 3)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_an_evaluation_has_every_row_once_over_all_ranks(make_module, task, world):
    module = make_module(task)
    ranks = [list(module.evaluation_loader("val", rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    for *full, last in ranks:
        assert all(len(batch.key) == 3 for batch in full)
        # Rows that fill up would count in expert loads: only a rank with nothing left has one.
        assert last.valid.all() or len(last.key) == 1
    rows = list(chain(*(rows_of(batches) for batches in ranks)))
    assert len(rows) == len(set(rows)) == ROWS[task][1]
    assert sorted(rows) == sorted(rows_of(module.evaluation_loader("val")))


@pytest.mark.parametrize("task", TASKS)
def test_workers_and_threads_change_no_batch(make_module, task):
    expected = epoch_of(make_module(task), 1)
    for loading in (Loading(threads=2, window=2), Loading(workers=1, window=2)):
        assert_same(epoch_of(make_module(task, loading=loading), 1), expected)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("world", [1, 2])
def test_a_run_goes_on_with_the_rows_that_are_left(make_module, task, world):
    module = make_module(task, batch_size=2)
    whole = rows_of(epoch_of(module, 4))
    loader = module.training_loader()
    loader.sampler.set_epoch(4)
    batches = iter(loader)
    seen = rows_of([next(batches) for _ in range(4)])
    later = make_module(task, batch_size=2)
    later.load_state_dict(module.state_dict())
    parts = []
    for rank in range(world):
        again = later.training_loader(rank, world)
        again.sampler.set_epoch(4)
        parts.append([rows_of([batch]) for batch in again])
    if world == 1:
        rest = [row for batch in parts[0] for row in batch]
        assert seen + rest == whole
    else:
        rest = [r for a, b in zip(*parts, strict=True) for p in zip(a, b, strict=True) for r in p]
        # Padding of texts depends on the batch; the rest of a row does not.
        keys = [row[-1] for row in seen + rest]
        assert keys == [row[-1] for row in whole][: len(keys)]
        assert len(rest) >= len(whole) - len(seen) - 3


@pytest.mark.parametrize("task", TASKS)
def test_epochs_are_shuffled_and_see_other_crops(make_module, task):
    module = make_module(task)
    first, second = rows_of(epoch_of(module, 0)), rows_of(epoch_of(module, 1))
    assert [row[-1] for row in first] != [row[-1] for row in second]
    assert len({row[0] for row in first} & {row[0] for row in second}) < len(first) / 2


def test_a_bad_image_costs_its_rows_but_counts_once(make_module):
    def cut(number, content):
        return content | {"png": content["png"][:200]} if number == 7 else content

    module = make_module("vqa", change=cut, limits=Limits(max_errors=1))
    assert len(epoch_of(module, 0)) == ROWS["vqa"][0] // 3
    rows = rows_of(module.evaluation_loader("val"))
    # Sample 7 has four questions; what stands in their place does not count.
    assert len(rows) == len(set(rows)) == ROWS["vqa"][1] - 4
    assert module.ledger.total == 1


@pytest.mark.parametrize(
    ("task", "field", "sentence"),
    [
        ("vqa", "qa", "no questions in a field"),
        ("nlvr2", "statements", "no sentences in a field"),
        ("retrieval", "captions", 'no field "captions"'),
    ],
)
def test_texts_that_are_missing_are_found_at_setup_and_counted(
    make_module, task, field, sentence, tokenizer_path, make_shards, make_task
):
    def strip(number, content):
        content = MEMBERS[task](number, content)
        about = json.loads(content["json"])
        if number == 6:
            del about[field]
        return content | {"json": json.dumps(about).encode()}

    languages = ["en"] if task == "retrieval" else None
    source = Source(str(make_shards(COUNTS, change=strip)), 3, languages)
    for errors in (0, 1):
        module = FineTuningDataModule(
            source,
            make_task(task),
            tokenizer_path,
            val=source,
            view=VIEW,
            loading=SERIAL,
            limits=Limits(max_errors=errors),
        )
        if errors:
            module.setup("validate")
            assert module.ledger.total == 1
        else:
            with pytest.raises(ShardError, match=rf"000000006\.json .*{sentence}"):
                module.setup("validate")


def test_a_left_image_alone_is_named(make_module):
    def strip(number, content):
        return {name: data for name, data in content.items() if name != "right.png"}

    with pytest.raises(ShardError, match=r"has no right image, only \.left\.png, \.json"):
        epoch_of(make_module("nlvr2", change=strip), 0)


def test_a_class_beyond_the_list_is_named(make_module):
    def far(number, content):
        return content | {"cls": b"3"} if number == 2 else content

    with pytest.raises(ShardError, match=r"000000002\.cls is 3; there are 3 classes"):
        epoch_of(make_module("classification", change=far), 0)


def test_classification_needs_no_tokenizer(make_shards, make_task):
    source = Source(str(make_shards(COUNTS, change=task_shards.class_members)), 3)
    module = FineTuningDataModule(source, make_task("classification"), view=VIEW, loading=SERIAL)
    batch = epoch_of(module, 0)[0]
    assert [int(key[-2:]) % 3 for key in batch.key] == batch.label.tolist()
    assert module.state_dict().keys() == {"epoch", "sample", "classes"}


def test_a_task_with_texts_asks_for_a_tokenizer(make_shards, make_task):
    source = Source(str(make_shards(COUNTS, change=task_shards.vqa_members)), 3)
    module = FineTuningDataModule(source, make_task("vqa"), view=VIEW)
    with pytest.raises(ValueError, match=r"set data\.tokenizer"):
        module.setup("fit")


def test_languages_are_refused_where_they_mean_nothing(make_task, tokenizer_path):
    with pytest.raises(ValueError, match=r"train\.languages has no meaning for VqaSamples"):
        FineTuningDataModule(Source("x", 3, ["en"]), make_task("vqa"), tokenizer_path)


def test_no_source_at_all_is_refused(make_task, tokenizer_path):
    with pytest.raises(ValueError, match="At least one of train, val and test"):
        FineTuningDataModule(None, make_task("vqa"), tokenizer_path)


def test_a_batch_larger_than_the_data_is_refused(make_module):
    with pytest.raises(ValueError, match=r"train has 45 samples an epoch.*3 x 16 ranks = 48"):
        make_module("vqa").training_loader(0, 16)


def test_a_checkpoint_of_another_vocabulary_is_refused(make_module, tmp_path):
    module = make_module("vqa")
    state = module.state_dict()
    (tmp_path / "answers.json").write_text(json.dumps(task_shards.ANSWERS[::-1]))
    module.sample = VqaSamples(str(tmp_path / "answers.json"))
    with pytest.raises(ValueError, match=r"another answers .*numbers of the answers would change"):
        module.load_state_dict(state)


def test_predictions_are_of_the_test_split(make_module):
    module = make_module("vqa", batch_size=7)
    assert module.predict_dataloader() == []
    module.sources["test"] = module.sources["val"]
    module.setup("predict")
    assert len(rows_of(module.predict_dataloader())) == ROWS["vqa"][1]


class Recorder(pl.LightningModule):
    """Remembers the rows that it saw in training."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.stop_at = stop_at
        self.seen = []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.stop_at:
            raise KeyError("stopped")
        self.seen.append((self.current_epoch, batch_idx, batch.question_id))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_resumes_in_the_middle_of_an_epoch_of_rows(make_module, tmp_path):
    def fit(stop_at=None, resume=None):
        saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_top_k=-1)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=[saver],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module = Recorder(stop_at)
        try:
            trainer.fit(module, make_module("vqa", batch_size=4, val=None), ckpt_path=resume)
        except KeyError:
            assert stop_at is not None
        return module.seen

    whole = fit()
    first = fit(stop_at=7)
    (last,) = (tmp_path / "saved").glob("*step=7.ckpt")
    assert first + fit(resume=last) == whole
    assert len(whole) == 2 * (ROWS["vqa"][0] // 4)
