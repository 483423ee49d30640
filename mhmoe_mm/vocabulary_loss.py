"""Cross-entropy over a large vocabulary, a few rows at a time.

The scores of all tokens over all words of a vocabulary are often the largest tensor of a training:
at 8,192 tokens and 100,000 words 3.3 GB in float32, and twice that with their gradient. Here they
exist for one chunk of rows at a time, and the gradients are made from them at once: nothing is
computed a second time, and memory does not grow with the rows.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.losses import Prediction, exact_sum

CHUNK = 4096
"""Scores of this many rows exist together, unless a caller says otherwise."""


def vocabulary_cross_entropy(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    target: Int[Tensor, " rows"],
    chunk: int = CHUNK,
) -> Prediction:
    """`masked_cross_entropy(hidden @ weight.T, target)`, without the scores of all rows at once.

    The same numbers, but for the order of the sums over rows in the gradient of `weight`. Under
    autocast the products are made in its precision, everything else in float32.
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of rows that exist together, 1 or more, got {chunk}.")
    wanted = target != IGNORED
    hidden, target = hidden[wanted], target[wanted]
    count = torch.tensor(len(target), device=hidden.device)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled():
            loss, correct, total = _ChunkedCrossEntropy.apply(hidden, weight, target, chunk)
        else:
            nats, right = token_losses(hidden, weight, target, chunk)
            total, correct = exact_sum(nats), right.sum()
            loss = nats.sum() / max(len(nats), 1)
    return Prediction(loss, correct, count, total)


@torch.no_grad()
def token_losses(
    hidden: Float[Tensor, "rows dim"],
    weight: Float[Tensor, "vocab dim"],
    target: Int[Tensor, " rows"],
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """(nats, whether the largest score is the target's) of every row; every row has a target."""
    nats, right = [], []
    for part, wanted in zip(hidden.split(chunk), target.split(chunk), strict=True):
        scores = F.linear(part, weight).float()
        nats.append(F.cross_entropy(scores, wanted, reduction="none"))
        right.append(scores.argmax(dim=1) == wanted)
    return torch.cat(nats), torch.cat(right)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """(mean, number of rows predicted right, sum in float64); gradients of the mean."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, target: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        share = 1 / max(len(target), 1)
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        correct = torch.zeros((), dtype=torch.long, device=hidden.device)
        total = exact_sum(hidden.new_zeros(0))
        for start in range(0, len(target), chunk):
            rows = slice(start, start + chunk)
            part, wanted = hidden[rows], target[rows]
            scores = F.linear(part, weight).float()
            correct += (scores.argmax(dim=1) == wanted).sum()
            log_prob = scores.log_softmax(dim=1)
            total += exact_sum(-log_prob.gather(1, wanted[:, None])[:, 0])
            grad = log_prob.exp_()
            grad.scatter_add_(1, wanted[:, None], grad.new_full((len(wanted), 1), -1.0))
            grad = grad.mul_(share).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = grad @ weight
            if grad_weight is not None:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(correct, total)
        return (total * share).float(), correct, total

    @staticmethod
    def backward(ctx, grad: Tensor, *_: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad
        if grad_weight is not None:
            grad_weight = (grad_weight * grad).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None
