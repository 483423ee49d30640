"""Image-text retrieval: images and texts as vectors that are alike where they belong together.

A dual encoder: images and texts go through the network alone, so a collection is encoded once.
Source: https://arxiv.org/abs/2208.10442, section 3.1, and the code released with it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mhmoe_mm.batches import RetrievalBatch, normalized
from mhmoe_mm.losses import contrastive
from mhmoe_mm.metrics.recall import RetrievalRecall
from mhmoe_mm.models.beit3 import BEiT3, MultiwayInput
from mhmoe_mm.models.heads import EmbeddingHead
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.prediction_files import ImageTextVectors
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task


class Retrieval(Task):
    """Every image finds its text among those of the whole batch, and every text its image.

    An evaluation looks among all; it has recalls and no loss. Logged as `train/scale` is the
    inverse temperature, which is learned.

    Args:
        net: the multiway encoder.
        scale: the inverse temperature that training starts from.
        max_scale: the inverse temperature never exceeds this; None, as in the released code: no
            limit.
        same_image_is_wrong: whether another caption of the same image counts as a wrong answer, as
            in the released code.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    prediction_file = ImageTextVectors("predictions.safetensors", unique=None)

    def __init__(
        self,
        net: BEiT3,
        scale: float = 1 / 0.07,
        max_scale: float | None = None,
        same_image_is_wrong: bool = True,
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, {"contrast": 1.0}, optimizer, schedule, balance_weight, z_weight, init_from
        )
        if scale <= 0 or (max_scale is not None and max_scale < scale):
            raise ValueError(
                f"scale is positive and max_scale no less, got scale={scale} and "
                f"max_scale={max_scale}."
            )
        self.net: BEiT3 = net
        self.max_scale, self.same_image_is_wrong = max_scale, same_image_is_wrong
        self.logit_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.vision_head, self.language_head = EmbeddingHead(net.dim), EmbeddingHead(net.dim)
        self.recall = RetrievalRecall()

    def losses(self, batch: RetrievalBatch) -> Outcome:
        if self.max_scale is not None:
            # The parameter itself: a limit on its exponential would have no gradient back down.
            with torch.no_grad():
                self.logit_scale.clamp_(max=math.log(self.max_scale))
        image, text, loads = self._vectors(batch)
        scale = self.logit_scale.float().exp()
        ids = None if self.same_image_is_wrong else batch.image_id
        prediction = contrastive(image, text, scale, batch.valid, ids)
        return Outcome({"contrast": prediction}, loads, {"scale": scale.detach()})

    def evaluate(self, batch: RetrievalBatch) -> Outcome:
        """Recalls alone: the contrastive loss depends on what happens to share a batch."""
        image, text, loads = self._vectors(batch)
        self.recall.update(image, text, batch.image_id, batch.valid)
        return Outcome({}, loads)

    def predict(self, batch: RetrievalBatch) -> list[dict[str, Any]]:
        """Vectors (dim) `image` and `text`, float32, with `image_id` and `key` of every pair."""
        image, text, _ = self._vectors(batch)
        rows = zip(image.float(), text.float(), batch.image_id.tolist(), batch.key, strict=True)
        return [{"image": i, "text": t, "image_id": n, "key": key} for i, t, n, key in rows]

    def embed_image(self, pixel: Tensor) -> tuple[Tensor, dict[str, Load]]:
        """Vectors of length 1 (batch dim) of images, uint8 (batch 3 height width); their loads."""
        encoded = self.net(normalized(pixel), None)
        return self.vision_head(encoded.hidden[:, 0]), encoded.loads

    def embed_text(self, token: Tensor, pad: Tensor) -> tuple[Tensor, dict[str, Load]]:
        """Vectors of length 1 (batch dim) of texts, ids and padding (batch seq); their loads."""
        encoded = self.net(None, token, pad)
        return self.language_head(encoded.hidden[:, 0]), encoded.loads

    def _vectors(self, batch: RetrievalBatch) -> tuple[Tensor, Tensor, dict[str, Load]]:
        image, text = self.net.together(
            MultiwayInput(normalized(batch.pixel)), MultiwayInput(text=batch.token, pad=batch.pad)
        )
        vision, language = self.vision_head, self.language_head
        return vision(image.hidden[:, 0]), language(text.hidden[:, 0]), image.loads
