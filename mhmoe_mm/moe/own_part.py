"""What a rank holds of weights that several ranks share out."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def own_part(weight: Tensor) -> Tensor:
    """The experts of a stack [experts ...] that this rank holds; all of a stack that is not spread.

    Gradients are divided by the number of ranks that share the stack out. Rows of all of them meet
    at an expert, so its gradient is a sum over their batches, where that of every other weight is
    a mean.
    """
    if not isinstance(weight, DTensor):
        return weight
    result = _MeanGradient.apply(weight.to_local(), weight.device_mesh.size())
    assert isinstance(result, Tensor)
    return result


class _MeanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad / ctx.ranks, None
