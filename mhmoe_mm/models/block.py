"""One layer of a transformer: attention, then a feed-forward net.

Each stands behind a norm and beside a residual path. A layer reads several sequences at once
(images, texts, pairs): each is attended to alone, and the tokens of all go through the feed-forward
net together.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float
from timm.layers import DropPath
from torch import Tensor, nn

from mhmoe_mm.models.attention import Attention, Past
from mhmoe_mm.models.branches import FFNInput, Multiway, MultiwayFFN
from mhmoe_mm.moe.routing import Kinds, Load


class Reading(NamedTuple):
    """How a layer reads one sequence, `[image ; text]`."""

    split: int
    """Number of image tokens in front."""
    mask: Bool[Tensor, "#batch #heads #queries keys"] | None
    """True where a query may look at a key; None: anywhere."""
    keep: Bool[Tensor, "batch seq"] | None
    """False at padding, which no expert receives; None where there is none."""
    kinds: Kinds
    past: Past | None = None
    """Keys and values to read on from, one for every layer; the layer adds to it."""


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + ffn(norm(x))`.

    While training, a sample leaves out either summand with probability `drop_path`. Returns its
    output and the loads of its sparse feed-forward nets by branch; keeps nothing.
    """

    def __init__(
        self,
        attention_norm: Multiway,
        attention: Attention,
        ffn_norm: Multiway,
        ffn: MultiwayFFN,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.ffn_norm, self.ffn = ffn_norm, ffn
        self.drop_path = DropPath(drop_path)

    def forward(
        self, sequences: list[Float[Tensor, "_ _ dim"]], readings: Sequence[Reading]
    ) -> tuple[list[Float[Tensor, "_ _ dim"]], dict[str, Load]]:
        """The sequences as they go on, in order, and the loads over the tokens of all."""
        attended = [self._attended(x, how) for x, how in zip(sequences, readings, strict=True)]
        read = [
            FFNInput(self.ffn_norm(x, how.split), how.split, how.keep, how.kinds)
            for x, how in zip(attended, readings, strict=True)
        ]
        answers, loads = self.ffn(read)
        return [x + self.drop_path(y) for x, y in zip(attended, answers, strict=True)], loads

    def _attended(self, x: Tensor, how: Reading) -> Tensor:
        y = self.attention(self.attention_norm(x, how.split), how.split, how.mask, how.past)
        return x + self.drop_path(y)
