"""Experts as a few fused operators, forward and backward, around the kernels of `triton_kernels`.

    forward    rows' hidden = activation(tokens' rows x W_in + b_in)          one kernel
               answers = hidden x W_out + b_out                               one kernel
               tokens = sum of their answers times the router's weights       one kernel
    backward   from tokens' gradients to those before the activation          one kernel
               weights and biases of a product, all experts                   one kernel each
               tokens = sum of rows' gradients x W_in^T                       two kernels

Tokens are read where they lie: there is no copy of them by row. Kept for the backward is what is
before the activation, [rows hidden]: the activation is made again from it, which costs no product,
and half of what an unfused layer keeps. (To make the product again as well would spare the rest;
recomputing whole blocks does that.)

To torch each is an operator of its own with a shape rule: compilers and CUDA graphs need not look
inside. All sizes are known beforehand and nothing waits for the device. The first call with new
sizes times a few configurations: let it be before a graph is captured.
"""

from functools import partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mhmoe_mm.moe import triton_kernels as kernels
from mhmoe_mm.moe.backend_fused import differentiated
from mhmoe_mm.moe.backends import FeedForward
from mhmoe_mm.moe.dispatch import Layout

_operator = partial(torch.library.custom_op, mutates_args=())


def feed_forward(
    token: Float[Tensor, "n width"], net: FeedForward, layout: Layout, block: int
) -> Float[Tensor, "n width"]:
    """For every token the weighted sum of its experts' answers.

    Args:
        token: float32, bfloat16 or float16.
        net: the experts' weights, in the precision of the tokens.
        layout: a plan laid out with this `block`, a power of two of at least 16 rows.
    """
    slot, rows = layout.slot, layout.source.shape[0]
    taken = torch.zeros(rows, dtype=torch.bool, device=slot.device).index_fill(0, slot, True)
    source = torch.where(taken, layout.source, -1)
    keep = differentiated(token, layout.weight, *net)
    result = _FeedForward.apply(
        token.contiguous(), layout.weight, source, layout.expert, slot, layout.start, layout.end,
        block, keep, *net.contiguous(),
    )  # fmt: skip
    assert isinstance(result, Tensor)
    return result


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, token, weight, source, expert, slot, start, end, block, keep, *net) -> Tensor:
        w_in, b_in, w_out, b_out, w_gate, b_gate = net
        ctx.block = block
        hidden, *pre = _first(token, source, expert, w_in, b_in, w_gate, b_gate, keep, block)
        answer = _rows(hidden, expert, w_out, b_out, None, None, False, block)
        ctx.save_for_backward(token, weight, source, expert, slot, start, end, *net, *pre)
        return _gather_sum(answer, slot, start, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        token, weight, source, expert, slot, start, end, *net, pre, pre_gate = ctx.saved_tensors
        w_in, b_in, w_out, b_out, w_gate, b_gate = net
        grad, block, nobody = grad.contiguous(), ctx.block, len(source) - 1
        gate = weight.float().new_zeros(len(source)).scatter(0, slot, weight.float())
        hidden, grad_pre, grad_pre_gate, shares = _first_grad(
            grad, source, gate, expert, w_out, b_out, pre, pre_gate, block
        )
        of_weight = torch.where(slot == nobody, 0.0, shares.sum(dim=1).index_select(0, slot))
        by_expert = partial(_of_product, source=source, gate=gate, end=end, block=block)
        of_out = by_expert(hidden, grad, b_out, gather_left=False)
        del hidden
        of_in = by_expert(token, grad_pre, b_in, gather_left=True)
        of_gate, second = (None, None), None
        if w_gate is not None:
            second = grad_pre_gate
            of_gate = by_expert(token, second, b_gate, gather_left=True)
        of_row = _rows(grad_pre, expert, w_in, None, second, w_gate, True, block)
        of_token = _gather_sum(of_row, slot, start, None)
        return of_token, of_weight.to(weight.dtype), *[None] * 7, *of_in, *of_out, *of_gate


def _of_product(
    left: Tensor, right: Tensor, bias: Tensor | None, **given: Any
) -> tuple[Tensor, Tensor | None]:
    """Gradients of a product's matrices and biases, if it has any."""
    of_weight, of_bias = _weight_grad(left, right, bias=bias is not None, **given)
    return of_weight, None if bias is None else of_bias


@_operator("mhmoe_mm::experts_first")
def _first(
    token: Tensor, source: Tensor, expert: Tensor, w_in: Tensor, b_in: Tensor | None,
    w_gate: Tensor | None, b_gate: Tensor | None, keep: bool, block: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out = _first_shapes(token, source, expert, w_in, b_in, w_gate, b_gate, keep, block)
    num_experts, width, size = w_in.shape
    kept = [each if len(each) else None for each in out[1:]]
    with torch.cuda.device_of(token):
        kernels.first_kernel[_grid(len(source) // block, size)](
            token, source, expert, w_in, b_in, w_gate, b_gate, out[0], *kept,
            width, size, num_experts, PRECISION=_precision(token), BM=block,
        )  # fmt: skip
    return out


@_first.register_fake
def _first_shapes(token, source, expert, w_in, b_in, w_gate, b_gate, keep, block):
    rows, size = source.shape[0], w_in.shape[2]
    gated = keep and w_gate is not None
    return tuple(token.new_empty(n, size) for n in (rows, rows * keep, rows * gated))


@_operator("mhmoe_mm::experts_rows")
def _rows(
    row: Tensor, expert: Tensor, weight: Tensor, bias: Tensor | None, row2: Tensor | None,
    weight2: Tensor | None, transposed: bool, block: int,
) -> Tensor:  # fmt: skip
    """row x weight (+ row2 x weight2) (+ bias), with the matrices' transposes if so wished."""
    out = _rows_shape(row, expert, weight, bias, row2, weight2, transposed, block)
    inner, columns = row.shape[1], out.shape[1]
    steps = (1, inner) if transposed else (columns, 1)
    with torch.cuda.device_of(row):
        kernels.rows_kernel[_grid(len(row) // block, columns)](
            row, expert, weight, bias, row2, weight2, out, inner, columns, len(weight), *steps,
            PRECISION=_precision(row), BM=block,
        )  # fmt: skip
    return out


@_rows.register_fake
def _rows_shape(row, expert, weight, bias, row2, weight2, transposed, block):
    return row.new_empty(row.shape[0], weight.shape[1 if transposed else 2])


@_operator("mhmoe_mm::experts_gather_sum")
def _gather_sum(row: Tensor, slot: Tensor, start: Tensor, weight: Tensor | None) -> Tensor:
    out = _gather_sum_shape(row, slot, start, weight)
    rows, width = row.shape
    chunk = min(1024, 1 << (width - 1).bit_length())
    if len(start):
        with torch.cuda.device_of(row):
            kernels.gather_sum_kernel[(len(start) * -(-width // chunk),)](
                row, slot, start, weight, out, len(start), len(slot), rows - 1, width,
                BW=chunk,  # pyright: ignore[reportArgumentType]
            )  # fmt: skip
    return out


@_gather_sum.register_fake
def _gather_sum_shape(row, slot, start, weight):
    return row.new_empty(start.shape[0], row.shape[1])


@_operator("mhmoe_mm::experts_first_grad")
def _first_grad(
    grad: Tensor, source: Tensor, gate: Tensor, expert: Tensor, w_out: Tensor,
    b_out: Tensor | None, pre: Tensor, pre_gate: Tensor, block: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """hidden, gradients of what is before the activation, shares of the gates' gradients."""
    out = _first_grad_shapes(grad, source, gate, expert, w_out, b_out, pre, pre_gate, block)
    num_experts, size, width = w_out.shape
    gated, (hidden, grad_pre, grad_pre_gate, shares) = len(pre_gate) > 0, out
    with torch.cuda.device_of(grad):
        kernels.first_grad_kernel[_grid(len(source) // block, size)](
            grad, source, gate, expert, w_out, b_out, pre, pre_gate if gated else None,
            hidden, grad_pre, grad_pre_gate if gated else None, shares,
            width, size, num_experts, PRECISION=_precision(grad), BM=block, PART=kernels.PART,
        )  # fmt: skip
    return out


@_first_grad.register_fake
def _first_grad_shapes(grad, source, gate, expert, w_out, b_out, pre, pre_gate, block):
    shares = gate.new_empty(pre.shape[0], -(-pre.shape[1] // kernels.PART))
    return torch.empty_like(pre), torch.empty_like(pre), torch.empty_like(pre_gate), shares


@_operator("mhmoe_mm::experts_weight_grad")
def _weight_grad(
    left: Tensor, right: Tensor, source: Tensor, gate: Tensor, end: Tensor, bias: bool,
    gather_left: bool, block: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """left^T x right by expert, and the sums of right (empty unless `bias`)."""
    out = _weight_grad_shapes(left, right, source, gate, end, bias, gather_left, block)
    grad, grad_bias = out
    num_experts, a, b = grad.shape

    def grid(meta: dict) -> tuple[int]:
        return (num_experts * -(-a // meta["BA"]) * -(-b // meta["BB"]),)

    with torch.cuda.device_of(left):
        kernels.weight_grad_kernel[grid](
            left, right, source, gate, end, grad, grad_bias if bias else None, a, b,
            GATHER_LEFT=gather_left, PRECISION=_precision(left), BR=min(block, 64),
        )  # fmt: skip
    return out


@_weight_grad.register_fake
def _weight_grad_shapes(left, right, source, gate, end, bias, gather_left, block):
    num_experts, b = end.shape[0], right.shape[1]
    grad = left.new_empty(num_experts, left.shape[1], b)
    return grad, right.new_empty(num_experts if bias else 0, b)


def _grid(blocks: int, columns: int):
    """A program for each block of rows and tile of columns."""
    return lambda meta: (blocks * -(-columns // meta["BN"]),)


def _precision(tensor: Tensor) -> str:
    """What products of float32 numbers may be rounded to: that of torch's own on a GPU."""
    exact = torch.backends.cuda.matmul.fp32_precision != "tf32"
    return "ieee" if tensor.dtype == torch.float32 and exact else "tf32"


@register_flop_formula(torch.ops.mhmoe_mm.experts_first)
def _first_flops(token, source, expert, w_in, b_in, w_gate, *_, out_shape=None, **__) -> int:
    return 2 * source[0] * prod(w_in[1:]) * (1 if w_gate is None else 2)


@register_flop_formula(torch.ops.mhmoe_mm.experts_rows)
def _rows_flops(row, expert, weight, bias, row2, *_, out_shape=None, **__) -> int:
    return 2 * row[0] * prod(weight[1:]) * (1 if row2 is None else 2)


@register_flop_formula(torch.ops.mhmoe_mm.experts_first_grad)
def _first_grad_flops(grad, source, gate, expert, w_out, *_, out_shape=None, **__) -> int:
    return 2 * source[0] * prod(w_out[1:])


@register_flop_formula(torch.ops.mhmoe_mm.experts_weight_grad)
def _weight_grad_flops(left, right, source, *_, out_shape=None, **__) -> int:
    return 2 * source[0] * left[1] * right[1]
