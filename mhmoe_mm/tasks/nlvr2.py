"""Natural language for visual reasoning: is a sentence true of two images?

Each image is read with the sentence; the head reads both pairs.
Source: https://arxiv.org/abs/2208.10442, section 3.1, and the code released with it.
"""

from typing import Any

import torch
from torch import Tensor

from mhmoe_mm.batches import IGNORED, Nlvr2Batch, normalized
from mhmoe_mm.losses import masked_cross_entropy
from mhmoe_mm.metrics.nlvr2 import Nlvr2Accuracy
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.heads import TwoImageHead
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.prediction_files import PlainCsv
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task


class NLVR2(Task):
    """Sentences that are true or false of two images; an evaluation also gives the consistency.

    Args:
        net: the multiway encoder.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    prediction_file = PlainCsv("predictions.csv", unique="identifier")

    def __init__(
        self,
        net: BEiT3,
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, {"truth": 1.0}, optimizer, schedule, balance_weight, z_weight, init_from
        )
        self.net: BEiT3 = net
        self.head = TwoImageHead(net.dim)
        self.accuracy = Nlvr2Accuracy()

    def losses(self, batch: Nlvr2Batch) -> Outcome:
        return self._judge(batch)[0]

    def evaluate(self, batch: Nlvr2Batch) -> Outcome:
        outcome, logits = self._judge(batch)
        self.accuracy.update(logits.argmax(dim=1), batch.label, batch.identifier, batch.valid)
        return outcome

    def predict(self, batch: Nlvr2Batch) -> list[dict[str, Any]]:
        """`identifier` and `label`, "True" or "False", of every example."""
        judged = self.scores(batch)[0].argmax(dim=1).tolist()
        rows = zip(batch.identifier, judged, strict=True)
        return [{"identifier": name, "label": str(bool(true))} for name, true in rows]

    def _judge(self, batch: Nlvr2Batch) -> tuple[Outcome, Tensor]:
        logits, loads = self.scores(batch)
        target = torch.where(batch.valid, batch.label, IGNORED)
        return Outcome({"truth": masked_cross_entropy(logits, target)}, loads), logits

    def scores(self, batch: Nlvr2Batch) -> tuple[Tensor, dict[str, Load]]:
        """Logits (batch 2) of false and true; the loads."""
        image = normalized(torch.cat([batch.left, batch.right]))
        encoded = self.net(image, batch.token.repeat(2, 1), batch.pad.repeat(2, 1))
        pair = torch.cat([encoded.hidden[:, 0], encoded.hidden[:, encoded.split]], dim=1)
        return self.head(torch.cat(pair.chunk(2), dim=1)), encoded.loads
