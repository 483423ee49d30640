"""Tiny checkpoints of `mhmoe-mm fit`, whose tokenizer and lists of names have since been moved: who
uses one finds everything in the file."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from datamodules.classification import ClassificationSamples
from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import CaptioningSamples, RetrievalSamples
from datamodules.nlvr2 import Nlvr2Samples
from datamodules.sources import Source
from datamodules.transforms import View
from datamodules.vqa import VqaSamples
from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA
from tests.datamodules import task_shards
from tests.datamodules.conftest import encoded, members, write_tar

CLASSES = ["ant", "bee", "cat"]
SIZE, PATCH, ROWS, LONGEST = 16, 8, 3, 9
NET = {
    "class_path": "mhmoe_mm.models.beit3.BEiT3",
    "init_args": {
        "image_size": SIZE, "patch_size": PATCH, "vocab_size": 31, "dim": 28, "num_layers": 2,
        "num_heads": 2, "max_text": 13,
        "layout": {
            "class_path": "mhmoe_mm.models.multiway.SharedLayout",
            "init_args": {
                "dense": {"class_path": "mhmoe_mm.models.ffn.GeluFFN", "init_args": {"hidden": 29}},
                "sparse": {
                    "class_path": "mhmoe_mm.moe.MHMoE",
                    "init_args": {
                        "num_heads": 2, "num_experts": 5,
                        "router": {"class_path": "mhmoe_mm.moe.TopKRouter"},
                        "experts": {
                            "class_path": "mhmoe_mm.moe.GeluExperts", "init_args": {"hidden": 13},
                        },
                    },
                },
            },
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A task and its data."""

    task: type[Task]
    sample: type
    members: Callable[[int, dict[str, bytes]], dict[str, bytes]]
    files: dict[str, str] = field(default_factory=dict)
    """Of the task's options, those that name a file."""
    sample_files: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


ANSWERS = {"answers": "answers.json"}
DECODING = {"decoding": {"num_beams": 2, "max_tokens": 7}}
KINDS = {
    "vqa": Kind(VQA, VqaSamples, task_shards.vqa_members, ANSWERS, ANSWERS),
    "retrieval": Kind(Retrieval, RetrievalSamples, task_shards.caption_members),
    "captioning": Kind(
        Captioning, CaptioningSamples, task_shards.caption_members,
        {"tokenizer": "tokenizer.json"}, options=DECODING,
    ),
    "nlvr2": Kind(NLVR2, Nlvr2Samples, task_shards.nlvr2_members),
    "classification": Kind(
        ImageClassification, ClassificationSamples, task_shards.class_members,
        sample_files={"classes": "classes.json"}, options={"num_classes": len(CLASSES)},
    ),
}  # fmt: skip


class Trained(NamedTuple):
    """What a run left, and where its files are now."""

    kind: Kind
    run: Path
    moved: Path
    samples: dict[str, dict[str, bytes]]

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoints/last.ckpt"

    def task(self) -> Task:
        """The task as Lightning restores it."""
        files = {option: str(self.moved / name) for option, name in self.kind.files.items()}
        return self.kind.task.load_from_checkpoint(self.checkpoint, weights_only=True, **files)

    def batches(self) -> list[Any]:
        """Those of an evaluation."""
        files = {name: str(self.moved / file) for name, file in self.kind.sample_files.items()}
        source = Source(str(self.moved.parent / "shards"), ROWS, max_tokens=LONGEST)
        module = FineTuningDataModule(
            None, self.kind.sample(**files), str(self.moved / "tokenizer.json"), source,
            view=View(SIZE, PATCH),
        )  # fmt: skip
        return list(module.evaluation_loader("val"))

    def images(self, batch: Any, side: str = "") -> list[Image.Image]:
        """Those of a batch, from the bytes in the shard."""
        return [Image.open(BytesIO(self.image_bytes(key, side))) for key in batch.key]

    def image_bytes(self, key: str, side: str = "") -> bytes:
        content = self.samples[key.rpartition("/")[2]]
        return next(content[name] for name in (f"{side}png", "jpg", "webp") if name in content)

    def about(self, key: str) -> dict[str, Any]:
        """The `.json` of a sample."""
        return json.loads(self.samples[key.rpartition("/")[2]]["json"])


def sample(kind: Kind, number: int) -> dict[str, bytes]:
    """A sample whose image is of one of several sizes and formats."""
    content = kind.members(number, members(number))
    if "png" in content and number % 4:
        image = Image.open(BytesIO(content.pop("png"))).resize((17 + 5 * number, 31 - number))
        if number % 4 == 1:
            content["jpg"] = encoded(image, "JPEG")
        elif number % 4 == 2:
            content["webp"] = encoded(image, "WEBP", lossless=True)
        else:
            image.putalpha(image.convert("L"))
            content["png"] = encoded(image, "PNG")
    return content


def make(name: str, folder: Path, tokenizer: str) -> Trained:
    """Train a task for three steps with the program, then move its files."""
    kind, moved = KINDS[name], folder / "moved"
    samples = {f"{number:09d}": sample(kind, number) for number in range(7)}
    write_tar(folder / "shards/00000.tar", samples)
    contents = {
        "tokenizer.json": Path(tokenizer).read_text(),
        "answers.json": json.dumps(task_shards.ANSWERS),
        "classes.json": json.dumps(CLASSES),
    }
    for file, content in contents.items():
        (folder / file).write_text(content)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(configuration(kind, folder)))
    assert run(["fit", "--config", str(path)], Task) == 0
    moved.mkdir()
    for file in contents:
        (folder / file).rename(moved / file)
    return Trained(kind, folder / "runs/unnamed/version_0", moved, samples)


def configuration(kind: Kind, folder: Path) -> dict[str, Any]:
    """What trains a task on the shards and files in a folder."""
    source = {"shards": str(folder / "shards"), "batch_size": ROWS, "max_tokens": LONGEST}
    files = {option: str(folder / name) for option, name in kind.files.items()}
    named = {option: str(folder / name) for option, name in kind.sample_files.items()}
    return {
        "model": {
            "class_path": f"{kind.task.__module__}.{kind.task.__name__}",
            "init_args": {"net": NET, **kind.options, **files},
        },
        "data": {
            "class_path": "datamodules.fine_tuning.FineTuningDataModule",
            "init_args": {
                "train": source,
                "val": source,
                "tokenizer": str(folder / "tokenizer.json"),
                "sample": {
                    "class_path": f"{kind.sample.__module__}.{kind.sample.__name__}",
                    "init_args": named,
                },
                "view": {"size": SIZE, "patch": PATCH},
            },
        },
        "trainer": {
            "max_steps": 3,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "default_root_dir": str(folder / "runs"),
        },
    }
