"""The backend that experts have unless told otherwise."""

import warnings
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.moe.backend_native import NativeBackend
from mhmoe_mm.moe.backends import Backend, Form, GroupedBackend
from mhmoe_mm.moe.native_ops import NOT_BUILT
from mhmoe_mm.moe.routing import Plan


class AutoBackend(Backend):
    """`NativeBackend` for what it can compute, `GroupedBackend` for the rest.

    Where the former can do nothing only because its library could not be compiled, a warning says
    so, once.

    Args:
        block: of both; None for what each of them has itself.
    """

    def __init__(self, block: int | None = None):
        self.native = NativeBackend() if block is None else NativeBackend(block)
        self.grouped = GroupedBackend(block)

    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        net = form.feed_forward()
        reason = self.native.unfit(token, net)
        if not reason and net is not None:
            return self.native.compute(token, plan, num_experts, net)
        if reason.startswith(NOT_BUILT) and not torch.compiler.is_compiling():
            _warn(reason)
        return self.grouped(token, plan, num_experts, form)


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"Experts are computed by GroupedBackend, which is slower on a CPU: {reason}.", stacklevel=2
    )
