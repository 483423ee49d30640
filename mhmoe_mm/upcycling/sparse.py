"""A dense feed-forward net as SparseMoE, with the same function to begin with.

    experts as wide as the net        every expert is a copy
    experts a whole share as wide     every S experts are the S slices of the net's hidden units

Slices need k experts a token, k a multiple of S: the S experts of a group start with the same row
of the router, so they tie, and a token's k experts are whole groups ("virtual groups",
https://arxiv.org/abs/2410.07524). Answers are scaled so that gates, which add up to less than 1
unless they are divided by their sum, leave the output as it is.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.moe.mh_moe import SparseMoE
from mhmoe_mm.moe.scorers import LinearScorer
from mhmoe_mm.upcycling.dense_ffn import DenseFFN
from mhmoe_mm.upcycling.filling import (
    Start,
    Units,
    fill_experts,
    fill_router,
    gates_of,
    hidden_of,
)

STD_OF_SUM_1, STD_OF_COPIES, STD_OF_SLICES = 0.02, 1e-6, 1e-4
"""Of fresh router weights. Gates that add up to 1 leave the function as it is whatever their size.
Where they do not, all must be alike; for slices still so different that no two groups tie."""


class Cut(NamedTuple):
    """How the hidden units of a dense net become experts."""

    slices: int
    """Experts that together have all of them."""
    sums_to_1: bool
    """Whether the gates of a token's experts do."""
    scale: float
    """How much larger answers are than what the units add to the dense net's."""


def cut_of(layer: SparseMoE, dense: DenseFFN, where: str) -> Cut:
    """How a layer is filled; ValueError where its experts are neither copies nor slices."""
    k, sums_to_1 = gates_of(layer.router, where)
    experts = layer.router.num_experts
    hidden = hidden_of(layer.experts, dense.gate is not None, where)
    slices = dense.hidden // hidden
    if hidden * slices != dense.hidden or k % slices or experts % slices:
        raise ValueError(
            f"{where}: {experts} experts of {hidden} hidden units, {k} a token, are "
            f"neither copies nor slices of the {dense.hidden} of the dense net: choose experts as "
            "wide as it is, or an S-th as wide with both numbers multiples of S."
        )
    return Cut(slices, sums_to_1, slices if sums_to_1 else slices * experts / k)


@torch.no_grad()
def fill_sparse(
    layer: SparseMoE,
    dense: DenseFFN,
    token: Float[Tensor, "rows dim"],
    start: Start,
    where: str,
) -> None:
    """Give a sparse layer the function of a dense net, in place.

    To float tolerance, without noise and where no capacity drops tokens; with slices and gates that
    do not add up to 1, to about three digits. Where the net has a norm over its hidden units and
    experts have none, the norm's statistics over some tokens take its place, which is less exact.

    Raises:
        ValueError: the layer cannot have this function; `where` names it.
    """
    router, experts = layer.router, layer.experts
    if layer.shared is not None:
        raise ValueError(f"{where} has a shared expert, which is not filled: leave `shared` out.")
    slices, sums_to_1, scale = cut_of(layer, dense, where)
    hidden = dense.hidden // slices
    if getattr(experts, "norm", None) is None:
        dense = dense.without_norm(token)
    if dense.norm is not None and slices > 1:
        raise ValueError(
            f"{where}: the dense net has a norm over its hidden units, which slices of them cannot "
            f"compute: choose experts of {dense.hidden} hidden units, or sub_norm=False."
        )
    draw = torch.Generator().manual_seed(start.seed)
    if isinstance(router.scorer, LinearScorer) or slices > 1 or not sums_to_1:
        usual = STD_OF_SUM_1 if sums_to_1 else STD_OF_COPIES if slices == 1 else STD_OF_SLICES
        std = usual if start.router_std is None else start.router_std
        group = torch.randn(router.num_experts // slices, dense.up.shape[1], generator=draw)
        fill_router(router, std * group.repeat_interleave(slices, dim=0), where)
    parts = [
        _units(dense, slice(part * hidden, (part + 1) * hidden), scale) for part in range(slices)
    ]
    copies = parts * (router.num_experts // slices)
    fill_experts(experts, copies, dense.down_bias * scale / slices, start, draw, where)


def _units(dense: DenseFFN, part: slice, scale: float) -> Units:
    return Units(
        w_in=dense.up[part].T,
        b_in=dense.up_bias[part],
        w_out=dense.down[:, part].T * scale,
        w_gate=None if dense.gate is None else dense.gate[part].T,
        norm=None if dense.norm is None else dense.norm[:2],
    )
