"""From tokens to rows sorted by expert and back, both ways as gathers.

Tokens are copied to rows by a gather whose backward is a weighted bag sum, and rows are put back by
a bag sum whose backward is a gather: no scatter, no atomic, deterministic. Sizes depend on shapes
only, never on the data.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mhmoe_mm.moe.routing import Plan

_CACHED, _HELD = 1 << 18, 1 << 24
"""Numbers that are read at a time: what stays in a CPU's cache, and what a GPU has room for."""


class Layout(NamedTuple):
    """Where every assignment of a plan lies among rows sorted by expert.

    Assignments are kept in token order: those of token t are `start[t]` up to `start[t + 1]`. The
    last row belongs to assignments that go nowhere: it must hold finite numbers when rows are put
    together, and zeros in the gradient of the rows.
    """

    token: Int[Tensor, " assign"]
    weight: Float[Tensor, " assign"]
    slot: Int[Tensor, " assign"]
    """Row of each assignment."""
    start: Int[Tensor, " n"]
    source: Int[Tensor, " rows"]
    """Token of each row; where the row is padding, one that some expert reads."""
    expert: Int[Tensor, " rows"]
    """Expert of each row; `num_experts` behind the last block."""
    end: Int[Tensor, " experts"]
    """Row behind each expert's block, int32 as the grouped product wants it."""

    @classmethod
    def of(cls, plan: Plan, num_tokens: int, num_experts: int, block: int) -> "Layout":
        """Lay a plan out, each expert's rows padded to a multiple of `block`."""
        device = plan.token.device
        token, expert, weight, per_token = plan
        if per_token:
            start = torch.arange(num_tokens, device=device) * per_token
        else:
            token, order = torch.sort(token, stable=True)
            expert, weight = expert[order], weight[order]
            start = torch.searchsorted(token, torch.arange(num_tokens, device=device))

        num_assign = token.shape[0]
        small = torch.int16 if num_experts < 2**15 else torch.int64  # int16 sorts fastest
        sorted_expert, order = torch.sort(expert.to(small), stable=True)
        sorted_expert = sorted_expert.long()
        bound = torch.searchsorted(sorted_expert, torch.arange(num_experts + 1, device=device))
        aligned = (bound.diff() + block - 1).div(block, rounding_mode="floor") * block
        end = aligned.cumsum(0)

        # One block beyond the most that alignment can take: its last row is nobody's for certain.
        num_rows = (-(-(num_assign + num_experts * (block - 1)) // block) + 1) * block
        shift = F.pad(end - aligned, (0, 1)) - bound
        row = torch.arange(num_assign, device=device) + shift[sorted_expert]
        row = torch.where(sorted_expert < num_experts, row, num_rows - 1)
        slot = torch.empty_like(row).scatter_(0, order, row)
        # Padding repeats a token that an expert reads: one that goes nowhere may hold anything.
        read = token[order[:1]] if num_assign else token.new_zeros(1)
        source = read.expand(num_rows).scatter(0, slot, token)
        row_expert = torch.searchsorted(end, torch.arange(num_rows, device=device), right=True)
        return cls(token, weight, slot, start, source, row_expert, end.to(torch.int32))


def dispatch(token: Float[Tensor, "n width"], layout: Layout) -> Float[Tensor, "rows width"]:
    """Copy every token to its rows."""
    return _Dispatch.apply(token, layout.source, layout.slot, layout.start)


def combine(row: Float[Tensor, "rows width"], layout: Layout) -> Float[Tensor, "n width"]:
    """For every token the weighted sum of its rows, in the rows' precision."""
    return _Combine.apply(row, layout.weight, layout.slot, layout.start, layout.source)


def _bag(slot: Tensor, row: Tensor, start: Tensor, weight: Tensor | None) -> Tensor:
    """Sum rows by token. Nobody's row counts too, for without it the sum is several times faster:
    zero times its weight of zero, or zeros.
    """
    return F.embedding_bag(slot, row, start, mode="sum", per_sample_weights=weight)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, token: Tensor, source: Tensor, slot: Tensor, start: Tensor) -> Tensor:
        ctx.save_for_backward(slot, start)
        return token.index_select(0, source)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        slot, start = ctx.saved_tensors
        return _bag(slot, grad.contiguous(), start, None), None, None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        row: Tensor,
        weight: Tensor,
        slot: Tensor,
        start: Tensor,
        source: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(row, weight, slot, source)
        return _bag(slot, row, start, weight.to(row.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        row, weight, slot, source = ctx.saved_tensors
        row_weight = weight.new_zeros(row.shape[0]).scatter_(0, slot, weight).to(row.dtype)
        grad_row = grad.index_select(0, source)
        dot = _dots(grad_row, row).index_select(0, slot)
        grad_weight = torch.where(slot == row.shape[0] - 1, 0.0, dot).to(weight.dtype)
        return grad_row.mul_(row_weight[:, None]), grad_weight, None, None, None


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Dot products of rows, in float32."""
    if torch.compiler.is_compiling():  # which makes one loop of it
        return torch.linalg.vecdot(one.float(), other.float())
    piece = max(1, (_CACHED if one.device.type == "cpu" else _HELD) // one.shape[1])
    pairs = zip(one.split(piece), other.split(piece), strict=True)
    return torch.cat([torch.linalg.vecdot(a.float(), b.float()) for a, b in pairs])
