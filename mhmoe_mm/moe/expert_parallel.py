"""Experts that live on different ranks: rows travel to them and back.

Every rank of a group holds some of the experts, and tokens of its own. A row goes to the rank of
its expert, is multiplied there by the backend that would otherwise do so at home, and comes back:

    token -> rows sorted by expert -> all-to-all -> own experts -> all-to-all -> sum by token

Both exchanges are their own backward, in the other direction. Their sizes depend on the data, so
they wait for the device once in each forward, for a few numbers.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mhmoe_mm.moe.backends import Backend, Form
from mhmoe_mm.moe.dispatch import Layout, combine, dispatch
from mhmoe_mm.moe.routing import Plan


class Sizes(NamedTuple):
    """How many rows go where in an exchange."""

    arriving: Int[Tensor, "ranks own"]
    """From every rank for each of this rank's experts."""
    sent: list[int]
    """To every rank."""
    received: list[int]
    """From every rank."""


def agreed(count: Int[Tensor, "ranks own"], rows: int, group: dist.ProcessGroup) -> Sizes:
    """Tell every rank of the group how many rows each of its experts gets.

    Args:
        count: rows for each expert of each rank.
        rows: all of them, where none is dropped.
        group: the ranks.
    """
    arriving = torch.empty_like(count)
    dist.all_to_all_single(arriving, count, group=group)
    sent, received = torch.stack([count.sum(dim=1), arriving.sum(dim=1)]).tolist()
    return Sizes(arriving, sent, received)


class ExpertParallel(Backend):
    """Carries out a plan whose experts are spread over a group of ranks.

    Args:
        inner: multiplies the rows of this rank's own experts.
        group: the ranks; rank r of n holds the experts from `r * E / n` to `(r + 1) * E / n`.
    """

    def __init__(self, inner: Backend, group: dist.ProcessGroup):
        self.inner, self.group = inner, group
        self.agree = agreed
        """A planner, whose tensors have no content, puts an assumption in its place."""

    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        return _uncompiled(self._carry_out)(token, plan, num_experts, form)

    def _carry_out(self, token: Tensor, plan: Plan, num_experts: int, form: Form) -> Tensor:
        ranks = self.group.size()
        own = num_experts // ranks
        layout = Layout.of(plan, len(token), num_experts, block=1)
        row = dispatch(token, layout)
        count = layout.end.long().diff(prepend=layout.end.new_zeros(1)).view(ranks, own)
        arriving, sent, received = self.agree(count, len(plan.token), self.group)

        here = exchanged(row[: sum(sent)], sent, received, self.group)
        expert = torch.arange(own, device=token.device).repeat(ranks)
        expert = expert.repeat_interleave(arriving.flatten(), output_size=len(here))
        if not len(here):  # one row that goes nowhere: the weights still get a gradient, zero
            here, expert = F.pad(here, (0, 0, 0, 1)), expert.new_full((1,), own)
        place = torch.arange(len(here), device=token.device)
        each_once = Plan(place, expert, here.new_ones(len(here)), per_token=1)
        answer = self.inner(here, each_once, own, form)
        back = exchanged(answer[: sum(received)], received, sent, self.group)
        return combine(F.pad(back, (0, 0, 0, len(row) - len(back))), layout)


def _uncompiled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, where a compiler stops and goes on behind it: sizes depend on the data."""
    return cast(Callable[..., Tensor], torch.compiler.disable(method))


def exchanged(
    row: Float[Tensor, "rows width"], sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Float[Tensor, "others width"]:
    """The rows that the ranks of the group have for this one, in the order of ranks; the first
    `sent[0]` of its own rows go to rank 0, and so on. Gradients go back where rows came from.
    """
    result = _Exchange.apply(row, sent, received, group)
    assert isinstance(result, Tensor)
    return result


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, row: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        return _all_to_all(row, sent, received, group)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        sent, received = ctx.sizes
        return _all_to_all(grad, received, sent, ctx.group), None, None, None


def _all_to_all(
    row: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Tensor:
    result = row.new_empty(sum(received), row.shape[1])
    dist.all_to_all_single(result, row.contiguous(), received, sent, group=group)
    return result
