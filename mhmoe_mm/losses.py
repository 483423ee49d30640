"""Losses and what is counted beside them, as pure functions."""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mhmoe_mm.batches import IGNORED


class Prediction(NamedTuple):
    """What predicting some rows cost; the counts of several batches or ranks add up."""

    loss: Float[Tensor, ""]
    """Mean over the predicted rows, in nats; 0, with a gradient of 0, where no row is predicted."""
    correct: Int[Tensor, ""] | None
    """Predicted rows whose largest logit is the target's; None where nothing is right or wrong."""
    predicted: Int[Tensor, ""]
    """Rows that have a target."""
    total: Float[Tensor, ""] | None = None
    """Sum over the predicted rows, float64 where the device has it and without a gradient, so that
    sums of batches do not depend on how they were cut; None: `loss * predicted` has to do."""


def exact_sum(rows: Float[Tensor, "*more rows"]) -> Float[Tensor, "*more"]:
    """The sum of some rows' losses, over the last axis, in float64; on Apple's GPUs, which have
    none, in float32.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    return rows.detach().sum(dim=-1, dtype=exact)


def masked_cross_entropy(
    logits: Float[Tensor, "*rows vocab"], target: Int[Tensor, "*rows"], label_smoothing: float = 0.0
) -> Prediction:
    """Cross-entropy over the rows whose target is not `IGNORED`.

    Smoothing mixes the one-hot target with the uniform distribution over the vocabulary. Computed
    in float32 whatever the precision of the logits. A head over a large vocabulary should be given
    the predicted rows only.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), but is {label_smoothing}.")
    row, wanted = logits.reshape(-1, logits.shape[-1]).float(), target.reshape(-1).long()
    predicted = (wanted != IGNORED).sum()
    loss = F.cross_entropy(
        row, wanted, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing
    )
    # IGNORED is negative, so no argmax ever equals it.
    correct = (row.detach().argmax(dim=-1) == wanted).sum()
    return Prediction(loss.sum() / predicted.clamp(min=1), correct, predicted, exact_sum(loss))


def caption_cross_entropy(
    logits: Float[Tensor, "rows vocab"],
    target: Int[Tensor, " rows"],
    label_smoothing: float = 0.1,
    drop_worst: float = 0.0,
) -> Prediction:
    """Divergence of predicted tokens from smoothed targets, as the released captioning code has it.

    The target's probability is `1 - label_smoothing`, all other tokens share the rest. What the
    divergence is less than the cross-entropy, the target's own entropy, does not depend on the
    network. The share `drop_worst` of the rows with the largest losses is left out of the mean, but
    not of the counts: captions hold typing errors and tokens that nothing in the image tells.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), but is {label_smoothing}.")
    if not 0 <= drop_worst < 1:
        raise ValueError(f"drop_worst is a share of the tokens, in [0, 1), but is {drop_worst}.")
    rows, vocab = logits.shape
    log_prob = logits.float().log_softmax(dim=-1)
    right, rest = 1 - label_smoothing, label_smoothing / max(vocab - 1, 1)
    of_target = log_prob.gather(1, target[:, None])[:, 0]
    cross = -right * of_target - rest * (log_prob.sum(dim=1) - of_target)
    entropy = -right * math.log(right) - (label_smoothing * math.log(rest) if rest else 0.0)
    counted = max(int(rows * (1 - drop_worst)), min(rows, 1))
    worst_last = (cross - entropy).topk(counted, largest=False).values
    correct = (log_prob.detach().argmax(dim=-1) == target).sum()
    predicted = torch.tensor(rows, device=logits.device)
    return Prediction(worst_last.sum() / max(counted, 1), correct, predicted)


def soft_binary_cross_entropy(
    logits: Float[Tensor, "batch answers"],
    target: Float[Tensor, "batch answers"],
    valid: Bool[Tensor, " batch"],
) -> Prediction:
    """Binary cross-entropy of every answer against its score in [0, 1], summed over the answers.

    The released VQA loss: the mean over answers, times their number. Rows that are not `valid` do
    not count.
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    predicted = valid.sum()
    rows = torch.where(valid, loss.sum(dim=1), 0.0)
    return Prediction(rows.sum() / predicted.clamp(min=1), None, predicted, exact_sum(rows))


def soft_cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
    label_smoothing: float = 0.0,
) -> Prediction:
    """Cross-entropy against a distribution over the classes, such as a mixture of two."""
    loss = F.cross_entropy(logits.float(), target.float(), label_smoothing=label_smoothing)
    return Prediction(loss, None, torch.tensor(len(logits), device=logits.device))


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in the order of ranks; a rank's gradient is the sum of all ranks'."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def gathered(x: Tensor) -> Tensor:
    """The rows of every rank, as many from each; gradients find their way back to the rank that a
    row came from. `x` itself where there is one process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    result = _Gather.apply(x)
    assert isinstance(result, Tensor)
    return result


def contrastive(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    scale: Float[Tensor, ""],
    valid: Bool[Tensor, " batch"],
    image_id: Int[Tensor, " batch"] | None = None,
) -> Prediction:
    """Find every image's own text among those of all ranks, and every text's image.

    The mean of the two cross-entropies over this rank's rows; averaged over ranks, as gradients
    are, that is the loss of the whole batch. Vectors have length 1; `scale` is the inverse
    temperature. With `image_id`, further captions of the same image are no wrong answers. Rows that
    are not `valid` are neither asked nor found. A row is correct if its image finds its text.
    """
    images, texts, valids = gathered(image.float()), gathered(text.float()), gathered(valid)
    first = dist.get_rank() * len(image) if len(images) > len(image) else 0
    own = first + torch.arange(len(image), device=image.device)
    hidden = ~valids[None].expand(len(image), -1)
    if image_id is not None:
        hidden = hidden | (image_id[:, None] == gathered(image_id)[None])
    hidden = hidden.scatter(1, own[:, None], False)
    with torch.autocast(image.device.type, enabled=False):  # a large scale needs every digit
        scale = scale.float()
        rows = (scale * image.float() @ texts.T, scale * text.float() @ images.T)
    rows = [row.masked_fill(hidden, -torch.inf) for row in rows]
    loss = sum(F.cross_entropy(row, own, reduction="none") for row in rows) / 2
    predicted = valid.sum()
    correct = ((rows[0].detach().argmax(dim=1) == own) & valid).sum()
    return Prediction(
        torch.where(valid, loss, 0.0).sum() / predicted.clamp(min=1), correct, predicted
    )


def perplexity(loss: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`e^loss` of a mean cross-entropy in nats: how many equally likely tokens are as unsure."""
    return loss.exp()
