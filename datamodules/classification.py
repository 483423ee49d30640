"""Images of one class each: from `.cls` to `ClassBatch`."""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.answers import NameList
from datamodules.task_rows import Entry, Setting, TaskRows, TaskSamples
from datamodules.transforms import seen
from mhmoe_mm.batches import ClassBatch
from mhmoe_mm.inputs.pixels import stack_pixels


class ClassRow(NamedTuple):
    """An image and the number of its class."""

    pixel: Tensor
    label: int
    key: str
    valid: bool = True

    def silent(self) -> "ClassRow":
        """The same row as padding."""
        return self._replace(valid=False)


class ClassificationSamples(TaskSamples):
    """Every image is a row.

    Args:
        classes: the names of the classes in order, a `classes.json`.
    """

    reads_text = False

    def __init__(self, classes: str):
        self.path = classes

    def classes(self) -> NameList:
        """The classes, read when they are first asked for."""
        if not hasattr(self, "_classes"):
            self._classes = NameList(self.path, "classes")
        return self._classes

    def rows(self, setting: Setting) -> "ClassRows":
        return ClassRows(setting, len(self.classes()))


class ClassRows(TaskRows):
    """Images of one split as rows."""

    def __init__(self, setting: Setting, num_classes: int):
        self.setting = setting
        self.num_classes = num_classes

    def __call__(self, entry: Entry, choice: random.Random) -> ClassRow:
        sample = entry.sample
        label = sample.decode("cls")
        if not 0 <= label < self.num_classes:
            raise sample.error("class", f"is {label}; there are {self.num_classes} classes", "cls")
        pixel = seen(sample.encoded(), self.setting.view, self.setting.training, choice)
        return ClassRow(pixel, label, sample.name)

    def collate(self, rows: list[ClassRow]) -> ClassBatch:
        return ClassBatch(
            pixel=stack_pixels([row.pixel for row in rows]),
            label=torch.tensor([row.label for row in rows]),
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )
