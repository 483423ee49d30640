"""From the official files to the batches of the tasks."""

import json

import pytest
import torch

from datamodules.classification import ClassificationSamples
from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import CaptioningSamples, RetrievalSamples
from datamodules.loading import Loading
from datamodules.nlvr2 import Nlvr2Samples
from datamodules.sources import Source
from datamodules.transforms import View
from datamodules.vqa import VqaSamples
from tests.tools import official
from tests.tools.making import card_of, easy_vqa_members, write_zip
from tools import train_tokenizer
from tools.build_shards.cli import main


@pytest.fixture
def make_module(tmp_path):
    """make_module(arguments, task factory) -> a module over the shards that are built."""

    def make(arguments, make_task, texts=True):
        out = tmp_path / "out"
        assert main([*arguments, "--out", str(out)]) == 0
        tokenizer = out / "tokenizer.json"
        if texts:
            options = ["--vocab-size", "300", "--out", str(tokenizer)]
            assert train_tokenizer.main([str(out), *options]) == 0
        splits = [split for split in ("train", "val", "test") if (out / split).is_dir()]
        return FineTuningDataModule(
            sample=make_task(out),
            tokenizer=str(tokenizer),
            view=View(size=16, patch=8),
            loading=Loading(threads=0),
            **{split: Source(str(out / split), batch_size=2) for split in splits},
        )

    return make


def rows(module, split):
    return sum(int(batch.valid.sum()) for batch in module.evaluation_loader(split))


def test_vqav2(make_module, tmp_path):
    arguments = [*official.vqav2(tmp_path / "raw", images=3, each=5), "--min-answers", "1"]
    module = make_module(arguments, lambda out: VqaSamples(str(out / "answers.json")))
    batch = next(iter(module.training_loader()))
    # Six of ten people said so; the others' words are not in the vocabulary of usual answers.
    assert torch.equal(batch.target, torch.ones(2, 1))
    assert (rows(module, "val"), rows(module, "test")) == (15, 15)
    ids = [id for batch in module.evaluation_loader("test") for id in batch.question_id]
    assert set(ids) == {image * 1000 + n for image in (1, 2, 3) for n in range(5)}


def test_nlvr2(make_module, tmp_path):
    names = {"train": "train", "val": "dev", "test": "test1"}
    files = [f"{split}={official.nlvr2(tmp_path, name)}" for split, name in names.items()]
    module = make_module(["nlvr2", str(tmp_path), "--examples", *files], lambda out: Nlvr2Samples())
    labels = {}
    for batch in module.evaluation_loader("test"):
        labels |= dict(zip(batch.identifier, batch.label.tolist(), strict=True))
        assert not torch.equal(batch.left, batch.right)
    assert labels == {f"test1-{n}-1-{s}": int(s == 0) for n in (1, 2, 3) for s in (0, 2)}


def test_coco_for_retrieval(make_module, tmp_path):
    path = official.karpathy(tmp_path, "coco", count=7)
    arguments = ["coco-captions", str(tmp_path / "images"), "--karpathy", str(path)]
    module = make_module(arguments, lambda out: RetrievalSamples())
    assert len(module.training_loader()) == 4 // 2
    assert rows(module, "val") == 2 * 5


def test_flickr30k_for_captioning(make_module, tmp_path):
    path = official.karpathy(tmp_path, "flickr30k", count=7)
    arguments = ["flickr30k", str(path), str(tmp_path / "images")]
    module = make_module(arguments, lambda out: CaptioningSamples())
    (batch,) = module.evaluation_loader("val")
    assert sorted(batch.image_id) == ["2", "6"]
    assert [len(references) for references in batch.references] == [5, 5]


def test_an_image_folder(make_module, tmp_path):
    root = official.class_folders(tmp_path / "images")
    module = make_module(
        ["image-folder", str(root)],
        lambda out: ClassificationSamples(str(out / "classes.json")),
        texts=False,
    )
    labels = [label for batch in module.evaluation_loader("val") for label in batch.label.tolist()]
    assert sorted(labels[:9]) == [0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_the_shapes_can_be_asked_about(make_module):
    arguments = ["shapes", "--train", "29", "--val", "3", "--test", "3"]
    module = make_module(arguments, lambda out: VqaSamples(str(out / "answers.json")))
    known = [batch.target.sum(dim=1) for batch in module.evaluation_loader("val")]
    assert torch.cat(known).eq(1).all()


def test_easy_vqa_lists_its_answers_in_the_order_of_its_own_list(tmp_path):
    path = write_zip(tmp_path / "easy.zip", easy_vqa_members())
    assert main(["easy-vqa", str(path), "--out", str(tmp_path / "out")]) == 0
    answers = json.loads((tmp_path / "out" / "answers.json").read_text())
    assert answers == ["circle", "blue", "yes", "no"]
    assert card_of(tmp_path / "out")["lists"]["answers.json"]["entries"] == 4
