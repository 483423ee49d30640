"""Image captioning: predict masked tokens of captions from the image and what stands before them.

Captions are then written token by token (`models/generation.py`), each asked for by a mask token.
Source: https://arxiv.org/abs/2208.10442, section 3.1, and the code released with it.
"""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from mhmoe_mm.batches import IGNORED, CaptionBatch, normalized
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.losses import caption_cross_entropy, masked_cross_entropy
from mhmoe_mm.metrics.captions import CaptionScores
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.caption_reader import Reader, caption_visible, check_causal
from mhmoe_mm.models.generation import Decoding, generate
from mhmoe_mm.models.heads import MaskedLanguageHead
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.prediction_files import JsonList
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task

DECODING = Decoding()
PRINTED = 8
"""Captions that a test prints."""


@dataclass(frozen=True)
class CaptionLoss:
    """What a predicted token costs while training; an evaluation has the plain cross-entropy."""

    label_smoothing: float = 0.1
    """Share of a target that goes to all other tokens."""
    drop_worst: float = 0.2
    """Share of the tokens with the largest losses that is left out."""
    drop_after: int = 12000
    """Steps before anything is left out."""


class Captioning(Task):
    """Captions of images. An evaluation whose images have references writes captions and scores
    them; a test prints the first.

    Args:
        net: the multiway encoder; its routers must look at single tokens, without a capacity.
        tokenizer: the `tokenizer.json` that the data module reads captions with, or its content.
        loss: of a predicted token.
        decoding: how captions are written.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    prediction_file = JsonList("predictions.json", unique="image_id")
    token_objectives = ("token",)

    def __init__(
        self,
        net: BEiT3,
        tokenizer: str,
        loss: CaptionLoss = CaptionLoss(),
        decoding: Decoding = DECODING,
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, {"token": 1.0}, optimizer, schedule, balance_weight, z_weight, init_from
        )
        check_causal(net)
        decoding.check(net)
        self.net: BEiT3 = net
        self.vocabulary = Tokenizer(tokenizer)
        if self.vocabulary.vocab_size > net.vocab_size:
            raise ValueError(
                f"The tokenizer {self.vocabulary.path} has {self.vocabulary.vocab_size} tokens, "
                f"more than the network's vocab_size={net.vocab_size}: set that to as many or more."
            )
        self.loss, self.decoding = loss, decoding
        self.text_head = MaskedLanguageHead(net.dim, net.vocab_size)
        self.scores = CaptionScores()
        self._printed: list[str] = []

    def losses(self, batch: CaptionBatch) -> Outcome:
        split = 1 + self.net.image_embedding.num_patches
        visible = caption_visible(split, batch.token.shape[1], batch.token.device)
        encoded = self.net(normalized(batch.pixel), batch.token, batch.pad, visible=visible)
        wanted = (batch.target != IGNORED) & batch.valid[:, None]
        logits = self.text_head(encoded.hidden[:, encoded.split :][wanted])
        target = batch.target[wanted]
        if not self.training:
            return Outcome({"token": masked_cross_entropy(logits, target)}, encoded.loads)
        dropping = self.global_step >= self.loss.drop_after
        prediction = caption_cross_entropy(
            logits,
            target,
            self.loss.label_smoothing,
            self.loss.drop_worst if dropping else 0.0,
        )
        return Outcome({"token": prediction}, encoded.loads)

    def evaluate(self, batch: CaptionBatch) -> Outcome:
        asked = any(batch.references)
        if self.any_rank(asked):
            written = self.caption(batch.pixel)
            if asked:
                self.scores.update(written, batch.references, batch.image_id, batch.valid)
                for name, text in zip(batch.image_id, written, strict=True):
                    self._printed.append(f"{name}: {text}")
                del self._printed[PRINTED:]
        if not self.any_rank(bool((batch.target != IGNORED).any())):
            return Outcome({}, {})
        return self.losses(batch)

    def on_test_epoch_end(self) -> None:
        for line in self._printed:
            rank_zero_info(line)
        self._printed = []
        super().on_test_epoch_end()

    def on_validation_epoch_end(self) -> None:
        self._printed = []
        super().on_validation_epoch_end()

    def predict(self, batch: CaptionBatch) -> list[dict[str, Any]]:
        """`image_id` and `caption` of every image, as the official server takes them."""
        rows = zip(batch.image_id, self.caption(batch.pixel), strict=True)
        return [{"image_id": name, "caption": text} for name, text in rows]

    def caption(self, pixel: Tensor) -> list[str]:
        """The best caption found for every image, uint8 (batch 3 height width)."""
        words = self.vocabulary
        reader = Reader(self.net, self.text_head, words.mask)
        never = words.unwritten(self.net.vocab_size)
        found = generate(
            reader, normalized(pixel), words.bos, words.eos, self.decoding, never, self._all_done
        )
        return [words.decode(caption.token) for caption in found]

    def _all_done(self, here: bool) -> bool:
        return not self.any_rank(not here)
