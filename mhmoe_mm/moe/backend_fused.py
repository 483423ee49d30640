"""What backends have in common that compute the usual experts in few pieces."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.moe.backends import Backend, FeedForward, Form
from mhmoe_mm.moe.routing import Plan


class FusedBackend(Backend):
    """Computes experts that are a `FeedForward` in few pieces; others are an error that says why.
    Abstract.

    Args:
        fallback: takes what cannot be fused instead.
    """

    def __init__(self, fallback: Backend | None):
        self.fallback = fallback

    def __call__(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, form: Form
    ) -> Float[Tensor, "n width"]:
        reason = self.unfit(token)
        net = None if reason else form.feed_forward()
        if net is not None:
            return self.compute(token, plan, num_experts, net)
        return self.other(reason, form)(token, plan, num_experts, form)

    @abstractmethod
    def unfit(self, token: Tensor) -> str:
        """Why it cannot compute such tokens here; empty if it can."""

    @abstractmethod
    def compute(
        self, token: Float[Tensor, "n width"], plan: Plan, num_experts: int, net: FeedForward
    ) -> Float[Tensor, "n width"]:
        """The same as a call, for tokens that are not unfit."""

    def other(self, reason: str, form: Form) -> Backend:
        """What computes these experts instead, for this reason, or because they are none that can
        be fused.

        Raises:
            ValueError: nothing does.
        """
        if self.fallback is not None:
            return self.fallback
        if form.feed_forward() is None:
            reason = (
                "they are more than two products and an activation (a sub-norm, a quantization)"
            )
        name = type(self).__name__
        raise ValueError(
            f"{name} cannot compute these experts: {reason}. Use GroupedBackend, or {name} with "
            "fallback=True, which then does."
        )


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a backward may follow, for which something is to be kept."""
    wanted = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return torch.is_grad_enabled() and wanted
