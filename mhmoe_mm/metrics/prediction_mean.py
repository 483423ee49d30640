"""The mean of predictions over an evaluation, the same however it is cut into batches and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mhmoe_mm.losses import Prediction


class PredictionMean(Metric):
    """Loss per prediction in nats (or whatever the loss is) and accuracy."""

    full_state_update = False
    loss: Tensor
    correct: Tensor
    predicted: Tensor
    judged: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(()), dist_reduce_fx="sum")
        for name in ("correct", "predicted", "judged"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, prediction: Prediction) -> None:
        """Add the predictions of one batch."""
        total = prediction.total
        if total is None:
            total = prediction.loss.detach() * prediction.predicted
        # Not in place: a state that was reset in inference mode may only be replaced outside it.
        self.loss = self.loss + total  # float64 if the total is
        self.predicted = self.predicted + prediction.predicted
        if prediction.correct is not None:
            self.correct = self.correct + prediction.correct
            self.judged = self.judged + prediction.predicted

    def compute(self) -> dict[str, Tensor]:
        """`loss`, and for predictions that are right or wrong also `accuracy`.

        Empty if nothing was predicted.
        """
        if not self.predicted:
            return {}
        loss = (self.loss / self.predicted).float()
        if not self.judged:
            return {"loss": loss}
        return {"loss": loss, "accuracy": self.correct / self.judged}
