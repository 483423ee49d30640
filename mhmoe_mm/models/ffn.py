"""Dense feed-forward nets, called like sparse ones so that either fits any place of a block."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mhmoe_mm.models.init import linear
from mhmoe_mm.moe.quantization import Quantization
from mhmoe_mm.moe.routing import Kinds


class GeluFFN(nn.Module):
    """Two linear maps with a GELU between: `down(sub_norm(gelu(up(x))))`.

    `hidden` is 4 × dim unless given. `sub_norm` is Magneto's second norm
    (https://arxiv.org/abs/2210.06423), which the released BEiT-3 models have. `quantization` rounds
    both matrices and what they read.
    """

    def __init__(
        self,
        dim: int,
        hidden: int | None = None,
        sub_norm: bool = True,
        quantization: Quantization | None = None,
    ):
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        self.up = linear(dim, hidden, quantization=quantization)
        self.sub_norm = nn.LayerNorm(hidden) if sub_norm else nn.Identity()
        self.down = linear(hidden, dim, quantization=quantization)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        keep: Bool[Tensor, "batch seq"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], None]:
        """`keep` and `kinds` are for routers; a dense net has none, and no load."""
        return self.down(self.sub_norm(F.gelu(self.up(x)))), None


class SwiGLUFFN(nn.Module):
    """A gated net without biases: `down(silu(gate(x)) * up(x))`.

    `hidden` is 8 / 3 × dim unless given, which makes three matrices as large as the two of a net
    with 4 × dim. `quantization` rounds the matrices and what they read. Source:
    https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self, dim: int, hidden: int | None = None, quantization: Quantization | None = None
    ):
        super().__init__()
        hidden = 8 * dim // 3 if hidden is None else hidden
        self.gate = linear(dim, hidden, False, quantization)
        self.up = linear(dim, hidden, False, quantization)
        self.down = linear(hidden, dim, False, quantization)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        keep: Bool[Tensor, "batch seq"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], None]:
        """`keep` and `kinds` are for routers; a dense net has none, and no load."""
        return self.down(F.silu(self.gate(x)) * self.up(x)), None


def check_sparse_every(sparse_every: int) -> None:
    """Refuse a distance between sparse layers that is none."""
    if sparse_every < 1:
        raise ValueError(
            f"sparse_every is 1 (every layer is sparse) or more, got {sparse_every}: "
            "for a network without sparse layers leave out `sparse`."
        )


def ffn_of_layer(
    layer: int,
    dense: Callable[[int], nn.Module],
    sparse: Callable[[int], nn.Module] | None,
    sparse_every: int,
) -> Callable[[int], nn.Module]:
    """What makes the feed-forward net of layer number `layer`, counted from 0.

    With `sparse`, every so manieth is sparse: layers 1, 3, 5, ... for 2.
    """
    is_sparse = layer % sparse_every == sparse_every - 1
    return sparse if sparse is not None and is_sparse else dense
