"""From a raw sample to a row of a batch, and from rows to batches.

Each callable takes a `Sample` and the sample's own generator and gives a row; `collate_*` stacks
rows. A row of padding (a duplicate that fills a batch) has nothing masked and no target: it cannot
count.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.language import choose_caption
from datamodules.masking import BlockMask, Masking, TextMask
from datamodules.reading import Sample
from datamodules.transforms import View, seen
from mhmoe_mm.batches import IGNORED, ImageBatch, PairBatch, TextBatch
from mhmoe_mm.inputs.pixels import stack_pixels
from mhmoe_mm.inputs.texts import stack_tokens
from mhmoe_mm.inputs.tokenization import Tokenizer


class ImageRow(NamedTuple):
    """An image: uint8 (3 size size), bool (patches)."""

    pixel: Tensor
    masked: Tensor
    key: str

    def silent(self) -> "ImageRow":
        """The same row as padding."""
        return self._replace(masked=torch.zeros_like(self.masked))


class TextRow(NamedTuple):
    """A text: corrupted ids and the ids to be predicted."""

    token: list[int]
    target: list[int]
    language: str
    key: str

    def silent(self) -> "TextRow":
        """The same row as padding."""
        return self._replace(target=[IGNORED] * len(self.target))


class PairRow(NamedTuple):
    """An image and a text that belong together."""

    image: ImageRow
    text: TextRow

    def silent(self) -> "PairRow":
        """The same row as padding."""
        return PairRow(self.image.silent(), self.text.silent())


class ImageSample:
    """Sample -> `ImageRow`: decoded, cropped (in training) or resized, and masked in blocks."""

    def __init__(self, view: View, masking: Masking, training: bool):
        self.view = view
        self.training = training
        self.mask = BlockMask(view.grid, view.grid, masking)

    def __call__(self, sample: Sample, choice: random.Random) -> ImageRow:
        pixel = seen(sample.encoded(), self.view, self.training, choice)
        return ImageRow(pixel, self.mask(choice), sample.name)


class TextSample:
    """Sample -> `TextRow`: a caption, tokenized and corrupted."""

    def __init__(self, languages: list[str] | None, max_tokens: int, mask: TextMask):
        self.languages = languages
        self.max_tokens = max_tokens
        self.mask = mask

    def __call__(self, sample: Sample, choice: random.Random) -> TextRow:
        caption, language = choose_caption(sample, self.languages, choice)
        ids, words = self.mask.tokenizer.encode_words(caption, self.max_tokens)
        token, target = self.mask(ids, words, choice)
        if all(label == IGNORED for label in target):
            raise sample.error("caption", f"has no token that could be predicted in {caption!r}")
        return TextRow(token, target, language, sample.name)


class PairSample:
    """Sample -> `PairRow`: both sides of one sample, both masked."""

    def __init__(self, image: ImageSample, text: TextSample):
        self.image = image
        self.text = text

    def __call__(self, sample: Sample, choice: random.Random) -> PairRow:
        return self.begin(sample, choice)()

    def begin(self, sample: Sample, choice: random.Random) -> Callable[[], PairRow]:
        """What is left to do once the text is read: the texts of a batch come one after the other
        (see `Feed`), and a text is the cheaper part to find broken.
        """
        text = self.text(sample, choice)
        return lambda: PairRow(self.image(sample, choice), text)


def collate_images(rows: list[ImageRow]) -> ImageBatch:
    """Stack images."""
    return ImageBatch(
        pixel=stack_pixels([row.pixel for row in rows]),
        masked=torch.stack([row.masked for row in rows]),
        key=[row.key for row in rows],
    )


class TextCollate:
    """Stack texts, padded to the longest in steps of 8, at most `max_tokens`."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int):
        self.pad = tokenizer.pad
        self.max_tokens = max_tokens

    def __call__(self, rows: list[TextRow]) -> TextBatch:
        token, pad = stack_tokens([row.token for row in rows], self.pad, self.max_tokens)
        target, _ = stack_tokens([row.target for row in rows], IGNORED, self.max_tokens)
        return TextBatch(
            token=token,
            target=target,
            pad=pad,
            language=[row.language for row in rows],
            key=[row.key for row in rows],
        )


class PairCollate:
    """Stack pairs."""

    def __init__(self, text: TextCollate):
        self.text = text

    def __call__(self, rows: list[PairRow]) -> PairBatch:
        image = collate_images([row.image for row in rows])
        text = self.text([row.text for row in rows])
        return PairBatch(
            pixel=image.pixel,
            masked=image.masked,
            token=text.token,
            target=text.target,
            pad=text.pad,
            language=text.language,
            key=text.key,
        )
