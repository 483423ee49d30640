"""Experts as two operators, forward and backward, around the library of `native/experts.cpp`.

Kept for the backward is what is before the activation, [rows hidden]; the rest is gathered or made
again, piece by piece in a core's cache. Weights may be float32 where tokens are bfloat16: they are
rounded as they are read, and their gradients are float32.
"""

import ctypes
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mhmoe_mm.moe.backend_fused import differentiated
from mhmoe_mm.moe.backends import FeedForward
from mhmoe_mm.moe.dispatch import Layout
from mhmoe_mm.moe.native_build import NotBuilt, library

KINDS = {
    (torch.float32, torch.float32): 0,
    (torch.bfloat16, torch.float32): 1,
    (torch.bfloat16, torch.bfloat16): 2,
}
"""Precisions of tokens and weights that the library knows, and its numbers for them."""

NOT_BUILT = "its library was not compiled"
"""How a reason begins that somebody can do something about."""

_operator = partial(torch.library.custom_op, mutates_args=())


def feed_forward(
    token: Float[Tensor, "n width"], net: FeedForward, layout: Layout
) -> Float[Tensor, "n width"]:
    """For every token the weighted sum of its experts' answers.

    Args:
        token: float32 or bfloat16.
        net: the experts' weights, all in float32 or all in the precision of the tokens.
        layout: a plan laid out in blocks of an even number of rows.
    """
    keep = differentiated(token, layout.weight, *net)
    result = _FeedForward.apply(
        token.contiguous(), layout.weight.float(), layout.slot, layout.token, layout.start,
        layout.end, layout.source.shape[0], keep, *net.contiguous(),
    )  # fmt: skip
    assert isinstance(result, Tensor)
    return result


@torch.compiler.assume_constant_result
def unfit(dtype: torch.dtype) -> str:
    """Why tokens of this precision cannot be computed on this machine; empty if they can.

    The first call may compile the library.
    """
    return _unfit(dtype)


@cache
def _unfit(dtype: torch.dtype) -> str:
    try:
        made = library()
    except NotBuilt as error:
        return f"{NOT_BUILT}: {error}"
    said = ctypes.create_string_buffer(_ROOM)
    if made.experts_check(ctypes.c_int64(KINDS[dtype, dtype]), said, ctypes.c_int64(_ROOM)):
        return f"torch has no micro-kernel for {dtype} on this processor ({_text(said)})"
    return ""


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, token, weight, slot, of, start, end, rows, keep, *net) -> Tensor:
        out, pre, pre_gate, _ = _forward(token, weight, slot, of, start, end, *net, rows, keep)
        ctx.save_for_backward(token, weight, slot, of, start, end, *net, pre, pre_gate)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        token, weight, slot, of, start, end, *net, pre, pre_gate = ctx.saved_tensors
        of_token, of_weight, *of_net, _ = _backward(
            grad.contiguous(), token, weight, slot, of, start, end, *net, pre, pre_gate
        )
        pairs = zip(net, of_net, strict=True)
        given = (None if each is None else of_each for each, of_each in pairs)
        return of_token, of_weight, *[None] * 6, *given


@_operator("mhmoe_mm::experts_forward")
def _forward(
    token: Tensor, weight: Tensor, slot: Tensor, of: Tensor, start: Tensor, end: Tensor,
    w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None, w_gate: Tensor | None,
    b_gate: Tensor | None, rows: int, keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The sums, what is before the activations if it is to be kept, and rows' answers.

    The last is room that is needed meanwhile: as a result, whoever plans memory knows of it.
    """
    plan, net = (slot, of, weight, start, end), (w_in, b_in, w_out, b_out, w_gate, b_gate)
    made = _forward_shapes(token, weight, slot, of, start, end, *net, rows, keep)
    out, pre, pre_gate, answer = made
    _call(
        "experts_forward", token, w_in, _sizes(token, slot, rows, w_in, w_gate),
        _pointers(*plan), _pointers(*net),
        *(_pointer(each) for each in (token, pre, pre_gate, answer, out)),
    )  # fmt: skip
    return made


@_forward.register_fake
def _forward_shapes(
    token, weight, slot, of, start, end, w_in, b_in, w_out, b_out, w_gate, b_gate, rows, keep
):
    size, gated = w_in.shape[2], keep and w_gate is not None
    pre = (token.new_empty(rows if kept else 0, size) for kept in (keep, gated))
    return torch.empty_like(token), *pre, token.new_empty(rows, token.shape[1])


@_operator("mhmoe_mm::experts_backward")
def _backward(
    grad: Tensor, token: Tensor, weight: Tensor, slot: Tensor, of: Tensor, start: Tensor,
    end: Tensor, w_in: Tensor, b_in: Tensor | None, w_out: Tensor, b_out: Tensor | None,
    w_gate: Tensor | None, b_gate: Tensor | None, pre: Tensor, pre_gate: Tensor,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:  # fmt: skip
    """Gradients of tokens, weights of the plan and the experts' parameters, and room for rows."""
    net, plan = (w_in, b_in, w_out, b_out, w_gate, b_gate), (slot, of, weight, start, end)
    made = _backward_shapes(grad, token, weight, slot, of, start, end, *net, pre, pre_gate)
    of_token, of_weight, *of_net, room = made
    _call(
        "experts_backward", token, w_in, _sizes(token, slot, len(pre), w_in, w_gate),
        _pointers(*plan), _pointers(*net),
        *(_pointer(each) for each in (token, grad, pre, pre_gate, room, of_token, of_weight)),
        _pointers(*of_net),
    )  # fmt: skip
    return made


@_backward.register_fake
def _backward_shapes(
    grad, token, weight, slot, of, start, end, w_in, b_in, w_out, b_out, w_gate, b_gate, pre,
    pre_gate,
):  # fmt: skip
    net = (w_in, b_in, w_out, b_out, w_gate, b_gate)
    of_net = (w_in.new_empty(0) if each is None else torch.empty_like(each) for each in net)
    (rows, size), gates = pre.shape, 1 if w_gate is None else 2
    room = token.new_empty(rows, 3 * token.shape[1] + gates * size)
    return torch.empty_like(token), torch.empty_like(weight), *of_net, room


_ROOM = 1000
"""Characters that the library has for an error."""


def _call(name: str, token: Tensor, weight: Tensor, *given: Any) -> None:
    said = ctypes.create_string_buffer(_ROOM)
    kind = ctypes.c_int64(KINDS[token.dtype, weight.dtype])
    if getattr(library(), name)(kind, *given, said, ctypes.c_int64(_ROOM)):
        raise RuntimeError(f"{name} failed: {_text(said)}")


def _text(buffer: Any) -> str:
    return buffer.value.decode(errors="replace").splitlines()[0]


def _sizes(
    token: Tensor, slot: Tensor, rows: int, w_in: Tensor, w_gate: Tensor | None
) -> ctypes.Array:
    numbers = (len(token), len(slot), rows, *w_in.shape[1:], len(w_in), w_gate is not None)
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _pointers(*tensors: Tensor | None) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(_address(each) for each in tensors))


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(_address(tensor))


def _address(tensor: Tensor | None) -> int | None:
    """Where its numbers lie; None where there are none."""
    return None if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _products(rows: int, w_in: Sequence[int], w_gate: Sequence[int] | None) -> int:
    return 2 * rows * prod(w_in[1:]) * (2 if w_gate is None else 3)


@register_flop_formula(torch.ops.mhmoe_mm.experts_forward)
def _forward_flops(token, weight, slot, of, start, end, *net_and_more, out_shape=None, **_) -> int:
    w_in, _b_in, _w_out, _b_out, w_gate, _b_gate, rows, _keep = net_and_more
    return _products(rows, w_in, w_gate)


@register_flop_formula(torch.ops.mhmoe_mm.experts_backward)
def _backward_flops(
    grad, token, weight, slot, of, start, end, *net_and_more, out_shape=None, **_
) -> int:
    w_in, _b_in, _w_out, _b_out, w_gate, _b_gate, pre, _pre_gate = net_and_more
    return 2 * _products(pre[0], w_in, w_gate)
