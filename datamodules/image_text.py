"""Images with captions: `RetrievalBatch` and `CaptionBatch`.

Captions are lines of `.txt`, or, where the source names `languages`, those of `.json` in them.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.language import all_captions, choose_caption
from datamodules.masking import CaptionMask, Masking
from datamodules.reading import Sample
from datamodules.task_rows import Entry, Setting, TaskRows, TaskSamples
from datamodules.transforms import seen
from mhmoe_mm.batches import IGNORED, CaptionBatch, RetrievalBatch
from mhmoe_mm.inputs.pixels import stack_pixels
from mhmoe_mm.inputs.texts import stack_tokens


class RetrievalRow(NamedTuple):
    """An image and one of its captions."""

    pixel: Tensor
    token: list[int]
    image: int
    key: str
    valid: bool = True

    def silent(self) -> "RetrievalRow":
        """The same row as padding."""
        return self._replace(valid=False)


class CaptionRow(NamedTuple):
    """An image and one of its captions, corrupted, or all of them as references."""

    pixel: Tensor
    token: list[int]
    target: list[int]
    image: str
    references: list[str]
    key: str
    valid: bool = True

    def silent(self) -> "CaptionRow":
        """The same row as padding."""
        return self._replace(valid=False)


class Captions:
    """Which captions of a sample are rows: each of them, or one that is drawn."""

    def __init__(self, languages: list[str] | None, every: bool):
        self.languages = languages
        self.expands = ("captions", languages) if every else None

    def parts(self, sample: Sample) -> tuple[list[int], int]:
        """As in `TaskRows`."""
        return list(range(len(all_captions(sample, self.languages)))), 0

    def of(self, entry: Entry, choice: random.Random) -> str:
        """The caption of a row."""
        if self.expands is None:
            return choose_caption(entry.sample, self.languages, choice)[0]
        return all_captions(entry.sample, self.languages)[entry.part]


class RetrievalSamples(TaskSamples):
    """Images and captions to be matched. An evaluation has a row for every caption.

    Args:
        every_caption: in training too, so that an epoch sees every caption; otherwise an epoch sees
            every image, with one caption drawn for it.
    """

    reads_languages = True

    def __init__(self, every_caption: bool = False):
        self.every_caption = every_caption

    def rows(self, setting: Setting) -> "RetrievalRows":
        return RetrievalRows(setting, self.every_caption or not setting.training)


class CaptioningSamples(TaskSamples):
    """Captions to be written. In training they are corrupted; an evaluation has a row for every
    image, with all its captions as references.

    Args:
        share: of the tokens of a caption, those that are to be predicted.
        mask_share: of these, the share that becomes `<mask>`.
        random_share: of these, the share that becomes another token; the rest stays.
        every_caption: as in `RetrievalSamples`, in training.
    """

    reads_languages = True

    def __init__(
        self,
        share: float = 0.7,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        every_caption: bool = False,
    ):
        if not 0 < share <= 1:
            raise ValueError(f"sample.share must lie in (0, 1], got {share}.")
        self.share = share
        self.masking = Masking(mask_share=mask_share, random_share=random_share)
        self.every_caption = every_caption

    def rows(self, setting: Setting) -> "CaptionRows":
        assert setting.tokenizer is not None, "captions are texts"
        mask = CaptionMask(setting.tokenizer, self.share, self.masking)
        return CaptionRows(setting, mask, self.every_caption and setting.training)


class RetrievalRows(TaskRows):
    """Rows of one split."""

    def __init__(self, setting: Setting, every_caption: bool):
        self.setting = setting
        self.captions = Captions(setting.source.languages, every_caption)
        self.expands = self.captions.expands

    def parts(self, sample: Sample) -> tuple[list[int], int]:
        return self.captions.parts(sample)

    def __call__(self, entry: Entry, choice: random.Random) -> RetrievalRow:
        return self.begin(entry, choice)()

    def begin(self, entry: Entry, choice: random.Random) -> Callable[[], RetrievalRow]:
        token = self.setting.encode(self.captions.of(entry, choice))

        def finish() -> RetrievalRow:
            image = entry.sample.encoded()
            pixel = seen(image, self.setting.view, self.setting.training, choice)
            return RetrievalRow(pixel, token, entry.number, entry.sample.name)

        return finish

    def collate(self, rows: list[RetrievalRow]) -> RetrievalBatch:
        token, pad = stack_tokens(
            [row.token for row in rows], self.setting.pad, self.setting.source.max_tokens
        )
        return RetrievalBatch(
            pixel=stack_pixels([row.pixel for row in rows]),
            token=token,
            pad=pad,
            image_id=torch.tensor([row.image for row in rows]),
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )


class CaptionRows(TaskRows):
    """Rows of one split."""

    def __init__(self, setting: Setting, mask: CaptionMask, every_caption: bool):
        self.setting = setting
        self.mask = mask
        self.captions = Captions(setting.source.languages, every_caption)
        self.expands = self.captions.expands

    def parts(self, sample: Sample) -> tuple[list[int], int]:
        return self.captions.parts(sample)

    def __call__(self, entry: Entry, choice: random.Random) -> CaptionRow:
        return self.begin(entry, choice)()

    def begin(self, entry: Entry, choice: random.Random) -> Callable[[], CaptionRow]:
        sample, setting = entry.sample, self.setting
        image = sample.name
        if setting.training:
            references = []
            token = setting.encode(self.captions.of(entry, choice))
            token, target = self.mask(token, choice)
        else:
            references = all_captions(sample, setting.source.languages)
            token = setting.encode(references[0])
            target = [IGNORED] * len(token)
            image = str(sample.about().get("image_id", image))

        def finish() -> CaptionRow:
            pixel = seen(sample.encoded(), setting.view, setting.training, choice)
            return CaptionRow(pixel, token, target, image, references, sample.name)

        return finish

    def collate(self, rows: list[CaptionRow]) -> CaptionBatch:
        longest = self.setting.source.max_tokens
        token, pad = stack_tokens([row.token for row in rows], self.setting.pad, longest)
        target, _ = stack_tokens([row.target for row in rows], IGNORED, longest)
        return CaptionBatch(
            pixel=stack_pixels([row.pixel for row in rows]),
            token=token,
            target=target,
            pad=pad,
            image_id=[row.image for row in rows],
            references=[row.references for row in rows],
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )
