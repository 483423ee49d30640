"""The backend that experts have unless told otherwise."""

import warnings
from functools import cache

import torch

from mhmoe_mm.moe.backend_native import BLOCK, NativeBackend
from mhmoe_mm.moe.backends import Backend, Form, GroupedBackend
from mhmoe_mm.moe.native_ops import NOT_BUILT


class AutoBackend(NativeBackend):
    """`NativeBackend` for what it can compute, `GroupedBackend` for the rest.

    Where the former can do nothing only because its library could not be compiled, a warning says
    so, once.

    Args:
        block: of both; None for what each of them has itself.
    """

    def __init__(self, block: int | None = None):
        super().__init__(BLOCK if block is None else block)
        self.grouped = self.fallback = GroupedBackend(block)

    def other(self, reason: str, form: Form) -> Backend:
        if reason.startswith(NOT_BUILT) and not torch.compiler.is_compiling():
            _warn(reason)
        return self.grouped


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"Experts are computed by GroupedBackend, which is slower on a CPU: {reason}.", stacklevel=2
    )
