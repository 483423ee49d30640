"""What a user does with an official data set: the commands from the published files to figures.

A `Project` is a folder with a data set as it was published, in `raw`, and what the commands make of
it. All sizes are tiny, and the images are noise.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task
from tests.tools import official
from tests.trained import NET
from tools import train_tokenizer
from tools.build_shards.cli import main as build_shards

NET_HERE = {
    "vocab_size": 283,
    "max_text": 19,
    "start": {"class_path": "mhmoe_mm.models.start.UnitStart"},
}
WATCH = "mhmoe_mm.callbacks.expert_activation.ExpertActivation"
AT_ONCE = {"class_path": "mhmoe_mm.optim.WarmupCosine", "init_args": {"warmup_steps": 0}}


@dataclass(frozen=True)
class DataSet:
    """An official data set, and the task that is trained on it; paths are relative."""

    make: Callable[[Path], list[str]]
    """Publishes it below a folder; returns the arguments of the build without --out."""
    task: str
    sample: str
    options: dict[str, Any] = field(default_factory=dict)
    sample_options: dict[str, Any] = field(default_factory=dict)
    tested: str = "test"
    """The split that has answers and is tested."""
    reads_text: bool = True
    steps: int = 2
    lr: float = 0.03
    """The rates and numbers of steps are such that predictions differ from row to row."""


def _vqav2(folder: Path) -> list[str]:
    arguments = official.vqav2(folder, images=5, each=7, asked=official.VARIED)
    return [*arguments, "--min-answers", "2"]


def _nlvr2(folder: Path) -> list[str]:
    sets = {"train": ("train", 3), "val": ("dev", 3), "test": ("test1", 5)}
    files = [f"{s}={official.nlvr2(folder, name, n, 3)}" for s, (name, n) in sets.items()]
    return ["nlvr2", str(folder), "--examples", *files]


def _coco(folder: Path) -> list[str]:
    path = official.karpathy(folder, "coco", count=23)
    return ["coco-captions", str(folder / "images"), "--karpathy", str(path)]


def _flickr30k(folder: Path) -> list[str]:
    path = official.karpathy(folder, "flickr30k", count=23)
    return ["flickr30k", str(path), str(folder / "images")]


def _images(folder: Path) -> list[str]:
    official.class_folders(folder / "images", ("train", "val", "test"))
    return ["image-folder", str(folder / "images")]


DATA_SETS = {
    "vqav2": DataSet(
        _vqav2, "vqa.VQA", "vqa.VqaSamples",
        {
            "answers": "data/answers.json",
            "annotations": ["raw/v2_mscoco_val2014_annotations.json"],
        },
        {"answers": "data/answers.json"},
        tested="val", steps=41, lr=0.01,
    ),
    "nlvr2": DataSet(_nlvr2, "nlvr2.NLVR2", "nlvr2.Nlvr2Samples", steps=29),
    "coco": DataSet(
        _coco, "captioning.Captioning", "image_text.CaptioningSamples",
        {"tokenizer": "data/tokenizer.json", "decoding": {"num_beams": 2, "max_tokens": 7}},
        steps=29,
    ),
    "flickr30k": DataSet(_flickr30k, "retrieval.Retrieval", "image_text.RetrievalSamples"),
    "imagenet": DataSet(
        _images, "image_classification.ImageClassification",
        "classification.ClassificationSamples", {"num_classes": 3},
        {"classes": "data/classes.json"}, reads_text=False,
    ),
}  # fmt: skip


class Project:
    """A folder with a data set as it was published.

    Args:
        folder: in which all that follows happens.
        name: one of `DATA_SETS`.
    """

    def __init__(self, folder: Path, name: str):
        self.folder, self.name = folder, name
        self.data_set = DATA_SETS[name]
        self.runs = folder / "runs" / name

    @property
    def raw(self) -> Path:
        return self.folder / "raw"

    @property
    def card(self) -> dict[str, Any]:
        """What the build says of itself."""
        return json.loads((self.data / "card.json").read_text())

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def build(self) -> None:
        """Make shards, and a tokenizer where there are texts."""
        with working_in(self.folder):
            arguments = self.data_set.make(Path("raw"))
            assert build_shards([*arguments, "--out", "data"]) == 0
            if self.data_set.reads_text:
                options = ["--vocab-size", "271", "--out", "data/tokenizer.json"]
                assert train_tokenizer.main(["data", *options]) == 0
            (self.folder / "run.yaml").write_text(yaml.safe_dump(self.configuration()))

    def configuration(self) -> dict[str, Any]:
        """The run file."""
        about = self.data_set
        sources = {
            split: {"shards": f"data/{split}", "batch_size": 3, "max_tokens": 17}
            for split in ("train", "val", "test")
        }
        net = {**NET, "init_args": NET["init_args"] | NET_HERE}
        optimizer = {"class_path": "mhmoe_mm.optim.AdamW", "init_args": {"lr": about.lr}}
        training = {"net": net, "optimizer": optimizer, "schedule": AT_ONCE}
        return {
            "name": self.name,
            "model": {
                "class_path": f"mhmoe_mm.tasks.{about.task}",
                "init_args": training | about.options,
            },
            "data": {
                "class_path": "datamodules.fine_tuning.FineTuningDataModule",
                "init_args": {
                    **sources,
                    "tokenizer": "data/tokenizer.json" if about.reads_text else None,
                    "sample": {
                        "class_path": f"datamodules.{about.sample}",
                        "init_args": about.sample_options,
                    },
                    "view": {"size": 16, "patch": 8},
                },
            },
            "trainer": {
                "max_steps": about.steps,
                "accelerator": "cpu",
                "num_sanity_val_steps": 0,
                "enable_progress_bar": False,
                "log_every_n_steps": 1,
                "callbacks": [{"class_path": WATCH, "init_args": {"heatmap": False}}],
            },
        }

    def fit(self, *options: str) -> None:
        self.command("fit", *options)

    def test(self, *options: str) -> None:
        """Test the checkpoint."""
        tested = f"data/{self.data_set.tested}"
        self.command("test", *self.checkpoint, "--data.test.shards", tested, *options)

    @property
    def figures(self) -> dict[str, float]:
        """What the newest test has written down."""
        return json.loads((self.newest_run() / "test.json").read_text())["metrics"]

    def predict(self, split: str) -> Path:
        """Predict a split with the checkpoint; the file of the predictions."""
        self.command("predict", *self.checkpoint, "--data.test.shards", f"data/{split}")
        (path,) = self.newest_run().glob("predictions.*")
        return path

    @property
    def checkpoint(self) -> tuple[str, str]:
        """The option that names what the first run left."""
        return "--ckpt_path", str(self.runs / "version_0/checkpoints/last.ckpt")

    def command(self, subcommand: str, *options: str) -> None:
        """`mhmoe-mm SUBCOMMAND --config run.yaml OPTIONS`."""
        with working_in(self.folder):
            assert run([subcommand, "--config", "run.yaml", *options], Task) == 0

    def newest_run(self) -> Path:
        return max(self.runs.iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))


@cache
def fitted(place: Path, name: str) -> Project:
    """A project with a checkpoint in a folder of that name; made once."""
    project = Project(place / name, name)
    project.folder.mkdir()
    project.build()
    project.fit()
    return project


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
