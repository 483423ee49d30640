"""The contract between data and tasks: one NamedTuple per kind of batch.

A NamedTuple is the one typed record that survives collation, memory pinning and Lightning's copy to
the device. Pixels stay uint8 until they are on the device; `normalized` turns them into what the
networks read.
"""

from typing import NamedTuple

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


def normalized(pixel: Tensor, mean: float = 0.5, std: float = 0.5) -> Tensor:
    """Pixels as the networks read them: uint8 (batch 3 height width) to float32, `(pixel / 255 -
    mean) / std`.
    """
    return (pixel.float() / 255 - mean) / std
