"""Image classification, with images mixed in training.

Source: https://arxiv.org/abs/2208.10442, appendix, and the code released with it, which reads the
mean of the patches.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from mhmoe_mm.batches import IGNORED, ClassBatch, normalized
from mhmoe_mm.losses import masked_cross_entropy, soft_cross_entropy
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.heads import ClassHead
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.prediction_files import CsvWithHeader
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task


class ImageClassification(Task):
    """Images of one class each.

    With `mixup` or `cutmix`, every training batch is mixed with itself, by either with even chances
    if both are given (https://arxiv.org/abs/1710.09412, https://arxiv.org/abs/1905.04899); such a
    batch has no training accuracy. An evaluation has neither mixing nor smoothing.

    Args:
        net: the multiway encoder; the released models have `normalize_output=False` here.
        num_classes: of the data.
        mixup, cutmix: alpha of the Beta distribution that the shares come from; 0 for none.
        label_smoothing: share of a target that goes to all classes evenly.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    prediction_file = CsvWithHeader("predictions.csv", unique="key")

    def __init__(
        self,
        net: BEiT3,
        num_classes: int,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, {"class": 1.0}, optimizer, schedule, balance_weight, z_weight, init_from
        )
        if mixup < 0 or cutmix < 0:
            raise ValueError(f"mixup and cutmix are 0 or more, got {mixup} and {cutmix}.")
        self.net: BEiT3 = net
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.mixtures: list[v2.Transform] = []
        with torch.device("cpu"):  # they draw shares, also where the weights have no memory yet
            if mixup:
                self.mixtures.append(v2.MixUp(alpha=mixup, num_classes=num_classes))
            if cutmix:
                self.mixtures.append(v2.CutMix(alpha=cutmix, num_classes=num_classes))
        self.head = ClassHead(net.dim, num_classes)
        self.names: list[str] | None = None
        """Of the classes, where the data module knows them as its `class_names`."""

    def on_predict_start(self) -> None:
        self.names = self._names_of_data() or self.names

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = self._names_of_data() or self.names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.names = checkpoint.get("classes")

    def _names_of_data(self) -> list[str] | None:
        return getattr(getattr(self.trainer, "datamodule", None), "class_names", None)

    def losses(self, batch: ClassBatch) -> Outcome:
        image, smoothing = normalized(batch.pixel), self.label_smoothing if self.training else 0.0
        if self.training and self.mixtures:
            chosen = int(torch.randint(len(self.mixtures), ()))
            image, target = self.mixtures[chosen](image, batch.label)
            logits, loads = self.scores(image)
            return Outcome({"class": soft_cross_entropy(logits, target, smoothing)}, loads)
        logits, loads = self.scores(image)
        target = torch.where(batch.valid, batch.label, IGNORED)
        return Outcome({"class": masked_cross_entropy(logits, target, smoothing)}, loads)

    def predict(self, batch: ClassBatch) -> list[dict[str, Any]]:
        """`key` and `class` of every image, and `name`, that of the class, where it is known."""
        chosen = self.scores(normalized(batch.pixel))[0].argmax(dim=1).tolist()
        rows = [{"key": key, "class": i} for key, i in zip(batch.key, chosen, strict=True)]
        if self.names is None:
            return rows
        return [{**row, "name": self.names[row["class"]]} for row in rows]

    def scores(self, image: Tensor) -> tuple[Tensor, dict[str, Load]]:
        """Logits (batch classes) of images as networks read them; the loads."""
        encoded = self.net(image, None)
        return self.head(encoded.hidden[:, 1:]), encoded.loads
