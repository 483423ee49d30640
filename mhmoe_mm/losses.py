"""Losses and what is counted beside them, as pure functions."""

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float, Int
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
    total = F.cross_entropy(
        row, wanted, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    # IGNORED is negative, so no argmax ever equals it.
    correct = (row.detach().argmax(dim=-1) == wanted).sum()
    return Prediction(total / predicted.clamp(min=1), correct, predicted)


def perplexity(loss: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`e^loss` of a mean cross-entropy in nats: how many equally likely tokens are as unsure."""
    return loss.exp()
