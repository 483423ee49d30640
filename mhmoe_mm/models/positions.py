"""Where a token stands: rotary positions, which attention reads, and learned ones, which the
embedding adds.

Both are final classes under one abstract: a decoder asks one for what it adds to embeddings and for
the rotation of queries and keys, and gets nothing from the one that has none.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from mhmoe_mm.models.init import start_small


class Rotation(NamedTuple):
    """Angles of every token, as cosines and sines; the same for all heads."""

    cos: Float[Tensor, "batch 1 seq half"]
    sin: Float[Tensor, "batch 1 seq half"]

    def __call__(
        self, x: Float[Tensor, "batch heads seq width"]
    ) -> Float[Tensor, "batch heads seq width"]:
        """Rotate each pair of neighbouring features (2i, 2i + 1) by its angle."""
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack(
            [even * self.cos - odd * self.sin, even * self.sin + odd * self.cos], dim=-1
        )
        return turned.flatten(-2).to(x.dtype)


class Positions(nn.Module, ABC):
    """What a decoder knows of where tokens stand. Abstract."""

    @abstractmethod
    def added(self, place: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"] | None:
        """What is added to the embeddings of tokens at these places, counted from 0."""

    @abstractmethod
    def rotation(self, place: Int[Tensor, "batch seq"]) -> Rotation | None:
        """How attention rotates the queries and keys of tokens at these places."""


class RotaryPositions(Positions):
    """Rotary positions: attention sees how far apart two tokens are, and nothing else.

    The pairs are neighbouring features, as in the paper; frequencies fall from 1 to about
    `1 / theta` in a geometric series. Angles are computed in float32.

    Args:
        dim, num_heads, max_text: of the decoder; each head has dim / num_heads features.
        theta: base of the frequencies.

    Source: https://arxiv.org/abs/2104.09864.
    """

    frequency: Tensor

    def __init__(self, dim: int, num_heads: int, max_text: int, theta: float = 10000.0):
        super().__init__()
        width = dim // num_heads
        if width % 2:
            raise ValueError(
                f"Rotary positions turn pairs of features, but a head of dim={dim} / "
                f"num_heads={num_heads} has {width}: choose them so that it is even."
            )
        exponent = torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width
        self.register_buffer("frequency", theta**-exponent, persistent=False)

    def added(self, place: Int[Tensor, "batch seq"]) -> None:
        return None

    def rotation(self, place: Int[Tensor, "batch seq"]) -> Rotation:
        angle = place[..., None].float() * self.frequency.float()
        angle = rearrange(angle, "b s w -> b 1 s w")
        return Rotation(angle.cos(), angle.sin())


class LearnedPositions(Positions):
    """A table of vectors, one for each place, added to the embeddings."""

    def __init__(self, dim: int, num_heads: int, max_text: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(max_text, dim))
        start_small(self.position)

    def added(self, place: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        return self.position[place]

    def rotation(self, place: Int[Tensor, "batch seq"]) -> None:
        return None
