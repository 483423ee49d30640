"""Ways to send rows through their experts: the same weights, the same answer, another speed.

A backend need know nothing of what an expert computes. It shows the expert's form a block of rows
and a `Rows` that can multiply every row with its own expert's matrix:

    LoopBackend      one expert after the other; the oracle that the others are tested against
    GroupedBackend   rows sorted by expert, one grouped matrix product for all of them
    EveryBackend     every row through every expert: many times the work, in plain operations whose
                     sizes are known beforehand, so that a network can be exported with it

A `backend_fused.FusedBackend` knows the usual forms, as `FeedForward`, and fuses what they do.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mhmoe_mm.moe.dispatch import Layout, combine, dispatch
from mhmoe_mm.moe.routing import Plan


class Rows(ABC):
    """The experts' parameters as rows see them. Abstract."""

    @abstractmethod
    def product(
        self, row: Float[Tensor, "rows a"], weight: Float[Tensor, "experts a b"]
    ) -> Float[Tensor, "rows b"]:
        """Every row times its expert's matrix."""

    @abstractmethod
    def vector(self, each: Float[Tensor, "experts a"]) -> Float[Tensor, "#rows a"]:
        """Every row's own expert's vector (a bias, the scale of a norm)."""


class FeedForward(NamedTuple):
    """The weights of experts that compute nothing but

    `gelu(x W_in + b_in) W_out + b_out`, or with a gate
    `((x W_in + b_in) * silu(x W_gate + b_gate)) W_out + b_out`,

    for a backend that has this in one piece. Biases may be None.
    """

    w_in: Float[Tensor, "experts width hidden"]
    b_in: Float[Tensor, "experts hidden"] | None
    w_out: Float[Tensor, "experts hidden width"]
    b_out: Float[Tensor, "experts width"] | None
    w_gate: Float[Tensor, "experts width hidden"] | None = None
    b_gate: Float[Tensor, "experts hidden"] | None = None

    def to(self, dtype: torch.dtype) -> "FeedForward":
        """The same in another precision."""
        return self._each(lambda weight: weight.to(dtype))

    def contiguous(self) -> "FeedForward":
        """The same without gaps in memory."""
        return self._each(Tensor.contiguous)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "FeedForward":
        changed: Any = [None if weight is None else change(weight) for weight in self]
        return FeedForward(*changed)


class Form(NamedTuple):
    """What an expert computes."""

    of_rows: Callable[[Tensor, Rows], Tensor]
    """From rows (rows width) and their experts' parameters to (rows width)."""
    feed_forward: Callable[[], FeedForward | None]
    """The same as weights, or None where it is more than two products and an activation."""


class Backend(ABC):
    """Carries out a plan. Abstract."""

    @abstractmethod
    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        """For every token the weighted sum of its experts' answers; zero where it has no expert."""


class LoopBackend(Backend):
    """One expert after the other. Slow beyond a few experts, and easy to believe."""

    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        mixed = torch.zeros_like(token)
        for expert in range(num_experts):
            mine = (plan.expert == expert).nonzero().squeeze(1)
            answer = form.of_rows(token[plan.token[mine]], _OneExpert(expert))
            weight = plan.weight[mine, None].to(answer.dtype)
            mixed = mixed.index_add(0, plan.token[mine], answer * weight)
        return mixed


class _OneExpert(Rows):
    def __init__(self, expert: int):
        self.expert = expert

    def product(
        self, row: Float[Tensor, "rows a"], weight: Float[Tensor, "experts a b"]
    ) -> Float[Tensor, "rows b"]:
        return row @ weight[self.expert]

    def vector(self, each: Float[Tensor, "experts a"]) -> Float[Tensor, "#rows a"]:
        return each[self.expert, None]


class EveryBackend(Backend):
    """Every expert reads every row, and the answers of those that were not chosen count nothing.

    It takes experts / k times the multiply-adds of the others and all of their memory at once. What
    it needs is batched matrix products alone: ONNX has them, and no size depends on the data.
    """

    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        rows = token.shape[0]
        row = token.expand(num_experts, *token.shape).flatten(0, 1)
        answer = form.of_rows(row, _EveryExpert(num_experts, rows)).unflatten(
            0, (num_experts, rows)
        )
        # An assignment to nowhere has a column of its own, which is left out.
        cell = plan.token * (num_experts + 1) + plan.expert
        weight = plan.weight.new_zeros(rows * (num_experts + 1)).scatter_add(0, cell, plan.weight)
        weight = weight.view(rows, num_experts + 1)[:, :num_experts].to(answer.dtype)
        return torch.einsum("enw,ne->nw", answer, weight)


class _EveryExpert(Rows):
    """Rows that stand once for every expert, (experts rows) flattened."""

    def __init__(self, num_experts: int, rows: int):
        self.num_experts, self.rows = num_experts, rows

    def product(
        self, row: Float[Tensor, "rows a"], weight: Float[Tensor, "experts a b"]
    ) -> Float[Tensor, "rows b"]:
        each = row.unflatten(0, (self.num_experts, self.rows))
        return (each @ weight).flatten(0, 1)

    def vector(self, each: Float[Tensor, "experts a"]) -> Float[Tensor, "#rows a"]:
        return each[:, None].expand(-1, self.rows, -1).flatten(0, 1)


class GroupedBackend(Backend):
    """Rows sorted by expert, every expert's block padded to a multiple of `block` rows, one grouped
    product.

    The number of rows is fixed beforehand (assignments + experts * (block - 1)), so nothing waits
    for the device and nothing recompiles. Aligned blocks give the matrix library few distinct
    shapes; where it multiplies in tiles (shorter precisions on GPUs, and on CPUs with AMX), they
    are of 32 rows without a `block`, elsewhere of 8. Widths that are not a multiple of 16 bytes are
    padded with zeros for the product.
    """

    def __init__(self, block: int | None = None):
        if block is not None and block < 1:
            raise ValueError(f"block is a positive number of rows, got {block}.")
        self.block = block
        self._cpu_has_tiles = torch.cpu._is_amx_tile_supported()

    def block_of(self, dtype: torch.dtype, device: torch.device) -> int:
        """Rows that each expert's block is a multiple of, in this precision and there."""
        if self.block is not None:
            return self.block
        tiles = device.type != "cpu" or self._cpu_has_tiles
        return 32 if tiles and dtype != torch.float32 else 8

    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        block = self.block_of(token.dtype, token.device)
        layout = Layout.of(plan, token.shape[0], num_experts, block)
        row = dispatch(token, layout)
        answer = form.of_rows(row, _Grouped(layout.end, layout.expert))
        return combine(answer, layout)


class _Grouped(Rows):
    """Blocks of rows; those behind the last block belong to nobody. The very last one is zeros
    behind a product, and the others on a CPU; elsewhere they hold whatever the memory held.
    """

    def __init__(self, end: Int[Tensor, " experts"], expert: Int[Tensor, " rows"]):
        self.end, self.expert = end, expert

    def product(
        self, row: Float[Tensor, "rows a"], weight: Float[Tensor, "experts a b"]
    ) -> Float[Tensor, "rows b"]:
        out = weight.shape[2]
        row_gap, out_gap = (-size % (16 // row.element_size()) for size in (weight.shape[1], out))
        if row_gap or out_gap:
            row, weight = F.pad(row, (0, row_gap)), F.pad(weight, (0, out_gap, 0, row_gap))
        product = _GroupedProduct.apply(row.contiguous(), weight, self.end)
        return product[:, :out] if out_gap else product

    def vector(self, each: Float[Tensor, "experts a"]) -> Float[Tensor, "#rows a"]:
        # One row more for nobody's rows, so that whatever they hold stays out of the experts'
        # gradients.
        return F.pad(each, (0, 0, 0, 1)).index_select(0, self.expert)


@torch.library.custom_op("mhmoe_mm::grouped_mm", mutates_args=())
def _grouped_mm(a: Tensor, b: Tensor, end: Tensor) -> Tensor:
    """torch's grouped product as an operator of ours: its own shape rule knows bfloat16 only."""
    result = F.grouped_mm(a, b, offs=end)
    if b.ndim == 3:
        # Of nobody's rows `combine` and the gradient of `dispatch` read the last one. A CPU, which
        # knows where they begin without waiting, clears all: what their memory held may be tiny
        # numbers (indices read as floats), and an activation takes tens of times as long for those.
        result[int(end[-1]) if result.device.type == "cpu" else -1 :].zero_()
    return result


@_grouped_mm.register_fake
def _(a: Tensor, b: Tensor, end: Tensor) -> Tensor:
    if b.ndim == 3:  # rows by expert (rows a) x (experts a b) -> (rows b)
        return a.new_empty(a.shape[0], b.shape[2])
    return a.new_empty(end.shape[0], a.shape[0], b.shape[1])  # (a rows) x (rows b) -> (experts a b)


class _GroupedProduct(torch.autograd.Function):
    """A grouped product whose backward accepts any gradient layout (CPU refuses strides of 0)."""

    @staticmethod
    def forward(ctx, row: Tensor, weight: Tensor, end: Tensor) -> Tensor:
        ctx.save_for_backward(row, weight, end)
        return _grouped_mm(row, weight, end)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        row, weight, end = ctx.saved_tensors
        grad = grad.contiguous()
        grad_row = _grouped_mm(grad, weight.transpose(1, 2), end)
        return grad_row, _grouped_mm(row.T, grad, end), None
