"""Masked data modelling: predict the hidden patches and tokens of images, texts and pairs.

Images, texts and pairs differ in length: attention reads each alone, the feed-forward nets read all
of them together. Nobody published the weights of the parts: they are settings. Source:
https://arxiv.org/abs/2208.10442, section 2.2.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mhmoe_mm.batches import IGNORED, ImageBatch, PairBatch, PretrainingBatch, TextBatch, normalized
from mhmoe_mm.losses import Prediction, masked_cross_entropy
from mhmoe_mm.models.beit3 import BEiT3, Encoded, MultiwayInput
from mhmoe_mm.models.heads import MaskedImageHead, MaskedLanguageHead
from mhmoe_mm.models.image_targets import ImageTarget
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task


@dataclass(frozen=True)
class ObjectiveWeights:
    """How much each objective counts in the loss."""

    image: float = 1.0
    """Masked patches of images alone."""
    text: float = 1.0
    """Masked tokens of texts alone."""
    pair_image: float = 1.0
    """Masked patches of an image beside its text."""
    pair_text: float = 1.0
    """Masked tokens of a text beside its image."""


class MaskedPretraining(Task):
    """Masked image, language and image-text modelling in one step.

    Args:
        net: the multiway encoder.
        image_target: what masked patches are predicted as.
        weights: of the four objectives.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    token_objectives = ("text", "pair_text")

    def __init__(
        self,
        net: BEiT3,
        image_target: ImageTarget,
        weights: ObjectiveWeights = ObjectiveWeights(),
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, asdict(weights), optimizer, schedule, balance_weight, z_weight, init_from
        )
        patch_size = net.image_embedding.patch.stride[0]
        if image_target.patch_size != patch_size:
            raise ValueError(
                f"The image target describes patches of {image_target.patch_size} pixels, but the "
                f"network reads patches of {patch_size}."
            )
        self.net: BEiT3 = net
        self.image_target = image_target
        self.text_head = MaskedLanguageHead(net.dim, net.vocab_size)
        self.image_head = MaskedImageHead(net.dim, image_target.size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the same image target: with other codes the head would mean something else."""
        super().on_load_checkpoint(checkpoint)
        saved, name = checkpoint["state_dict"], "image_head.out.weight"
        if name in saved and len(saved[name]) != self.image_target.size:
            raise ValueError(
                f"The checkpoint predicts {len(saved[name])} values or codes per patch, the image "
                f"target has {self.image_target.size}: go on with the target that it was trained "
                "with, or start a new training from it with `--model.init_from`."
            )
        for name, now in self.image_target.named_buffers(prefix="image_target"):
            if name in saved and not torch.equal(saved[name].cpu(), now.cpu()):
                raise ValueError(
                    "The checkpoint was trained with other codes of image patches than those of "
                    "the image target: go on with the same file, or start a new training from it "
                    "with `--model.init_from`."
                )

    def losses(self, batch: PretrainingBatch) -> Outcome:
        parts = [("", batch.image), ("", batch.text), ("pair_", batch.pair)]
        given = [(prefix, part, _read(part)) for prefix, part in parts if part is not None]
        every = self.net.together(*(read for _, _, read in given))
        predictions = {}
        for (prefix, part, read), encoded in zip(given, every, strict=True):
            by_modality = self._predictions(part, read.image, encoded)
            predictions |= {prefix + modality: p for modality, p in by_modality.items()}
        return Outcome(predictions, every[0].loads)

    def _predictions(
        self, part: ImageBatch | TextBatch | PairBatch, image: Tensor | None, encoded: Encoded
    ) -> dict[str, Prediction]:
        """What is said of all that one part of the batch hides, by modality."""
        predictions = {}
        if image is not None and not isinstance(part, TextBatch):
            patch = encoded.hidden[:, 1 : encoded.split]
            predictions["image"] = self._predict_patches(patch, image, part.masked)
        if not isinstance(part, ImageBatch):
            text, wanted = encoded.hidden[:, encoded.split :], part.target != IGNORED
            logits = self.text_head(text[wanted])
            predictions["text"] = masked_cross_entropy(logits, part.target[wanted])
        return predictions

    def _predict_patches(self, patch: Tensor, image: Tensor, masked: Tensor) -> Prediction:
        with torch.no_grad():
            target = self.image_target.target(image)
        return self.image_target.predict(self.image_head(patch[masked]), target[masked])


def _read(part: ImageBatch | TextBatch | PairBatch) -> MultiwayInput:
    """What the network sees of a part of the batch."""
    if isinstance(part, TextBatch):
        return MultiwayInput(text=part.token, pad=part.pad)
    image = normalized(part.pixel)
    if isinstance(part, ImageBatch):
        return MultiwayInput(image, masked=part.masked)
    return MultiwayInput(image, part.token, part.pad, part.masked)
