"""The contract between data and tasks: one NamedTuple per kind of batch.

A NamedTuple is the one typed record that survives collation, memory pinning and Lightning's copy to
the device. Pixels stay uint8 until they are on the device; `normalized` turns them into what the
networks read.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED = -100
"""The target of a position that is not predicted (torch's own default in `cross_entropy`)."""


class ImageBatch(NamedTuple):
    """Images for masked image modelling."""

    pixel: Tensor
    """uint8 (batch 3 height width)."""
    masked: Tensor
    """bool (batch patches), row-major over the patch grid; true where the encoder must not see the
    patch.
    """
    key: list[str]
    """Where each sample came from: `shard/key`."""


class TextBatch(NamedTuple):
    """Texts for masked language modelling: `<s> tokens </s>`, then padding."""

    token: Tensor
    """int64 (batch seq), corrupted input."""
    target: Tensor
    """int64 (batch seq), the original token where it is predicted, `IGNORED` elsewhere."""
    pad: Tensor
    """bool (batch seq), true at padding."""
    language: list[str]
    """Language code of each text, `und` where it is not known."""
    key: list[str]


class PairBatch(NamedTuple):
    """Image-text pairs with both sides masked; fields as in `ImageBatch` and `TextBatch`."""

    pixel: Tensor
    masked: Tensor
    token: Tensor
    target: Tensor
    pad: Tensor
    language: list[str]
    key: list[str]


class PretrainingBatch(NamedTuple):
    """One step of masked data modelling; a part that a run does not use is None."""

    image: ImageBatch | None
    text: TextBatch | None
    pair: PairBatch | None


class VqaBatch(NamedTuple):
    """Questions about images, with a soft score for every answer of the vocabulary.

    Here and in the batches below `valid` is false in the rows that only fill up an evaluation's
    last batch, so that every rank gets as many; metrics leave them out, and no loss counts them.
    """

    pixel: Tensor
    """uint8 (batch 3 height width)."""
    token: Tensor
    """int64 (batch seq), the question: `<s> tokens </s>`, then padding."""
    pad: Tensor
    """bool (batch seq), true at padding."""
    target: Tensor
    """float32 (batch answers), in [0, 1]: how right each answer is; all 0 where none is known."""
    question_id: list[str | int]
    valid: Tensor
    """bool (batch)."""
    key: list[str]
    """Where each sample came from: `shard/key`."""


class RetrievalBatch(NamedTuple):
    """Images and a caption of each; fields as in `VqaBatch`."""

    pixel: Tensor
    token: Tensor
    pad: Tensor
    image_id: Tensor
    """int64 (batch), equal where captions are of the same image."""
    valid: Tensor
    key: list[str]


class Nlvr2Batch(NamedTuple):
    """Sentences that are true or false of two images; fields as in `VqaBatch`."""

    left: Tensor
    """uint8 (batch 3 height width)."""
    right: Tensor
    """uint8 (batch 3 height width)."""
    token: Tensor
    pad: Tensor
    label: Tensor
    """int64 (batch), 1 where the sentence is true."""
    identifier: list[str]
    """As the data set names its examples: `split-set-pair-sentence`."""
    valid: Tensor
    key: list[str]


class CaptionBatch(NamedTuple):
    """Images and captions of which some tokens are to be predicted; fields as in `VqaBatch`."""

    pixel: Tensor
    token: Tensor
    """int64 (batch seq), corrupted while training; in an evaluation as it is."""
    target: Tensor
    """int64 (batch seq), the original token where it is predicted, `IGNORED` elsewhere."""
    pad: Tensor
    image_id: list[str]
    references: list[list[str]]
    """All captions of each image, for the evaluation; empty lists while training."""
    valid: Tensor
    key: list[str]


class ClassBatch(NamedTuple):
    """Images of one class each; fields as in `VqaBatch`."""

    pixel: Tensor
    label: Tensor
    """int64 (batch)."""
    valid: Tensor
    key: list[str]


class PictureBatch(NamedTuple):
    """Images of which nothing else is known; fields as in `VqaBatch`."""

    pixel: Tensor
    valid: Tensor
    key: list[str]


class LanguageBatch(NamedTuple):
    """Rows cut from a stream of documents, every token with the one that follows it."""

    token: Tensor
    """int64 (batch seq)."""
    target: Tensor
    """int64 (batch seq), the next token of the stream; `IGNORED` where none is predicted."""
    document: Tensor
    """int64 (batch seq), the number of the token's document within its row, from 0 and never
    falling; for networks that must not look from one document into another.
    """
    num_bytes: Tensor
    """int64 (batch), UTF-8 bytes of the text that the row's targets spell."""
    language: Tensor
    """int64 (batch), the position of the row's language in `languages`."""
    languages: tuple[str, ...]
    """Codes of all languages of the data, the same in every batch of a run."""
    valid: Tensor
    key: list[str]
    """Where each row came from: source and number."""


def normalized(pixel: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """Pixels as the networks read them: uint8 (batch 3 height width) to float32, `(pixel / 255 -
    mean) / std`.
    """
    # In place, for memory that is touched for the first time costs more than the arithmetic.
    image = pixel.to(torch.float32, copy=True)
    if math.frexp(std)[0] == 0.5:  # a power of two: the same to the bit in one division less
        return image.div_(255 * std).sub_(mean / std)
    return image.div_(255).sub_(mean).div_(std)


def pixels(image: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """The other way round: float (batch 3 height width) as networks read it to uint8."""
    return ((image.float() * std + mean) * 255).round().clamp(0, 255).byte()
