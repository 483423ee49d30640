"""Experts fused into two operators of compiled code, for CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.moe import native_ops
from mhmoe_mm.moe.backend_fused import FusedBackend
from mhmoe_mm.moe.backends import FeedForward, GroupedBackend
from mhmoe_mm.moe.dispatch import Layout
from mhmoe_mm.moe.routing import Plan

BLOCK = 8
"""Rows to whose multiple a block is padded, unless told otherwise."""


class NativeBackend(FusedBackend):
    """Rows sorted by expert as in `GroupedBackend`; gathers, biases, activation and all their
    derivatives between the products, in a core's cache.

    For `GeluExperts` and `SwiGLUExperts` without sub-norm and quantization, on a CPU that torch has
    micro-kernels for. The library is compiled at the first call, in seconds, and kept. What it
    cannot do is an error that says why.

    Args:
        block: rows to whose multiple every expert's block is padded, an even number.
        fallback: take `GroupedBackend` for what it cannot compute.
    """

    def __init__(self, block: int = BLOCK, fallback: bool = False):
        if block < 2 or block % 2:
            raise ValueError(f"block is an even number of rows for NativeBackend, got {block}.")
        super().__init__(GroupedBackend() if fallback else None)
        self.block = block

    def unfit(self, token: Tensor) -> str:
        if token.device.type != "cpu":
            return f"it computes on a CPU, and the tokens are on {token.device.type}"
        if token.dtype not in (torch.float32, torch.bfloat16):
            return f"it knows float32 and bfloat16, and the tokens are {token.dtype}"
        return native_ops.unfit(token.dtype)

    def compute(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, net: FeedForward
    ) -> Float[Tensor, "n width"]:
        if (token.dtype, net.w_in.dtype) not in native_ops.KINDS:
            net = net.to(token.dtype)
        layout = Layout.of(plan, token.shape[0], num_experts, self.block)
        gaps = [size % 2 for size in net.w_in.shape[1:]]
        if token.dtype == torch.bfloat16 and any(gaps):  # its numbers are multiplied in pairs
            token, net = F.pad(token, (0, gaps[0])), _widened(net, *gaps)
            return native_ops.feed_forward(token, net, layout)[:, : token.shape[1] - gaps[0]]
        return native_ops.feed_forward(token, net, layout)


def _widened(net: FeedForward, width: int, hidden: int) -> FeedForward:
    """The same experts with so many features more: zeros, which count nothing."""

    def padded(weight: Tensor | None, *sizes: int) -> Any:
        gaps = [gap for size in reversed(sizes) for gap in (0, size)]
        return None if weight is None else F.pad(weight, gaps)

    return FeedForward(
        padded(net.w_in, width, hidden), padded(net.b_in, hidden),
        padded(net.w_out, hidden, width), padded(net.b_out, width),
        padded(net.w_gate, width, hidden), padded(net.b_gate, hidden),
    )  # fmt: skip
