"""Experts fused into a few Triton kernels, for GPUs.

Tokens are gathered while they are multiplied, and biases, activation, router's weight and their
derivatives are worked out where a product lies, so that between two kernels there is no more than
what one activation reads and writes. `triton_ops` says which kernels there are.
"""

from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.moe.backend_fused import FusedBackend
from mhmoe_mm.moe.backends import FeedForward, GroupedBackend
from mhmoe_mm.moe.dispatch import Layout
from mhmoe_mm.moe.routing import Plan

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class TritonBackend(FusedBackend):
    """Rows sorted by expert as in `GroupedBackend`, gathers and activations inside the products.

    For `GeluExperts` and `SwiGLUExperts` without sub-norm and quantization, on a CUDA device. What
    it cannot do is an error that says why.

    Args:
        block: rows to whose multiple every expert's block is padded: 16, 32, 64 or 128. It is also
            the height of a product's tile: fewer pad less, more multiply faster.
        fallback: take `GroupedBackend` for what cannot be fused.
    """

    def __init__(self, block: int = 64, fallback: bool = False):
        if block not in (16, 32, 64, 128):
            raise ValueError(f"block is 16, 32, 64 or 128 rows for TritonBackend, got {block}.")
        super().__init__(GroupedBackend() if fallback else None)
        self.block = block
        self.devices = ("cuda",)
        """Where it runs; a planner, whose tensors have no content, adds others."""
        self._fused = None
        if find_spec("triton"):
            from mhmoe_mm.moe import triton_ops, triton_tuning  # not everyone has Triton

            self._fused = triton_ops.feed_forward
            self.devices += ("cpu",) * triton_tuning.INTERPRETED

    def unfit(self, token: Tensor) -> str:
        if self._fused is None:
            return "Triton is not installed"
        if token.device.type not in self.devices:
            return f"it needs a CUDA device, and the tokens are on {token.device.type}"
        if token.dtype not in PRECISIONS:
            return f"it knows float32, bfloat16 and float16, and the tokens are {token.dtype}"
        return ""

    def compute(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, net: FeedForward
    ) -> Float[Tensor, "n width"]:
        assert self._fused is not None
        layout = Layout.of(plan, token.shape[0], num_experts, self.block)
        return self._fused(token, net.to(token.dtype), layout, self.block)
