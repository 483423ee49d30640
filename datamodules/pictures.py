"""Images and nothing about them: `PictureBatch`, for what learns from images alone."""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.task_rows import Entry, Setting, TaskRows, TaskSamples
from datamodules.transforms import seen
from mhmoe_mm.batches import PictureBatch
from mhmoe_mm.inputs.pixels import stack_pixels


class PictureRow(NamedTuple):
    """An image."""

    pixel: Tensor
    key: str
    valid: bool = True

    def silent(self) -> "PictureRow":
        """The same row as padding."""
        return self._replace(valid=False)


class PictureSamples(TaskSamples):
    """Every image is a row."""

    reads_text = False

    def rows(self, setting: Setting) -> "PictureRows":
        return PictureRows(setting)


class PictureRows(TaskRows):
    """Images of one split as rows."""

    def __init__(self, setting: Setting):
        self.setting = setting

    def __call__(self, entry: Entry, choice: random.Random) -> PictureRow:
        sample = entry.sample
        pixel = seen(sample.encoded(), self.setting.view, self.setting.training, choice)
        return PictureRow(pixel, sample.name)

    def collate(self, rows: list[PictureRow]) -> PictureBatch:
        return PictureBatch(
            pixel=stack_pixels([row.pixel for row in rows]),
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )
