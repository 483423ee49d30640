"""Training an image tokenizer: codes from which a teacher's features can be told (VQ-KD).

Source: https://arxiv.org/abs/2208.06366, section 2.2, and the code released with it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from mhmoe_mm.batches import PictureBatch, normalized
from mhmoe_mm.losses import Prediction, exact_sum
from mhmoe_mm.metrics.codebook_usage import CodebookUsage
from mhmoe_mm.models.codebook import Assigned
from mhmoe_mm.models.vqkd import VQKD, Tokenized
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task
from mhmoe_mm.teachers.base import Teacher


class ImageTokenizer(Task):
    """Tokens of images that keep what a teacher sees.

    `distill` is 1 - the cosine between the decoded and the teacher's features of a patch,
    `commitment` the mean squared distance of a patch's unit vector from its code, per feature. The
    codes are found by k-means over the first batch and move once per step, by the vectors of all
    ranks and accumulated batches; those that are not used may be moved to where patches of the last
    batch are badly represented. An evaluation counts how many codes are used: `codes_used`, a
    share, and `codes_perplexity`. The teacher is no part of checkpoints.

    Args:
        net: the tokenizer.
        teacher: whose features are to be kept; as many patches a side as the tokenizer has.
        commitment: weight of that loss.
        decay: how much of a code stays in a step.
        restart_below: codes are moved that fewer patches of a step have, on average over the last
            1 / (1 - decay) steps or so; 0: none, as in the released code.
        optimizer, schedule, init_from: as in Task.
    """

    def __init__(
        self,
        net: VQKD,
        teacher: Teacher,
        commitment: float = 1.0,
        decay: float = 0.99,
        restart_below: float = 0.0,
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        init_from: str | None = None,
    ):
        weights = {"distill": 1.0, "commitment": commitment}
        super().__init__(net, weights, optimizer, schedule, init_from=init_from)
        if not 0 <= decay < 1:
            raise ValueError(f"decay is a share of a code, in [0, 1), got {decay}.")
        if restart_below < 0:
            raise ValueError(f"restart_below is a number of patches, got {restart_below}.")
        self.net: VQKD = net
        self.decay, self.restart_below = decay, restart_below
        self.usage = CodebookUsage(net.num_codes)
        # Not a submodule: it is neither saved, nor sharded, nor trained.
        self._teacher = (teacher,)
        self._assigned: Assigned | None = None
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def teacher(self) -> Teacher:
        """The frozen network whose features are to be kept."""
        return self._teacher[0]

    def setup(self, stage: str) -> None:
        """Also load the teacher, and see that it fits."""
        super().setup(stage)
        teacher, net = self.teacher, self.net
        teacher.load()
        name = type(teacher).__name__
        if teacher.grid != net.grid:
            raise ValueError(
                f"{name} sees images as {teacher.grid}x{teacher.grid} patches, the tokenizer as "
                f"{net.grid}x{net.grid}: choose image_size and patch_size of either alike."
            )
        if teacher.feature_dim != net.feature_dim:
            raise ValueError(
                f"{name} has {teacher.feature_dim} features per patch, but the tokenizer decodes "
                f"{net.feature_dim}: set feature_dim={teacher.feature_dim}."
            )

    def losses(self, batch: PictureBatch) -> Outcome:
        if self.training and not self.net.codebook.is_started:
            with torch.no_grad():
                self.net.codebook.start(self.net.encode(normalized(batch.pixel)))
        outcome, found = self._tokenize(batch)
        if self.training:
            assigned = self.net.codebook.assigned(found.vector, found.token)
            before = self._assigned
            self._assigned = assigned if before is None else before.plus(assigned)
            self._last = (found.vector.detach(), found.token)
        return outcome

    def evaluate(self, batch: PictureBatch) -> Outcome:
        """Also count the codes."""
        outcome, found = self._tokenize(batch)
        self.usage.update(found.token[batch.valid])
        return outcome

    def _tokenize(self, batch: PictureBatch) -> tuple[Outcome, Tokenized]:
        image = normalized(batch.pixel)
        found = self.net(image)
        teacher = self.teacher.to(image.device)
        wanted = teacher(image).float()
        distance = 1 - F.cosine_similarity(found.feature.float(), wanted, dim=-1)
        code = self.net.codebook.code[found.token]
        off = (found.vector - code).square().mean(dim=-1)
        predictions = {
            "distill": _mean(distance, batch.valid),
            "commitment": _mean(off, batch.valid),
        }
        return Outcome(predictions, {}), found

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the codes move too, with the vectors of the whole step."""
        super().on_before_optimizer_step(optimizer)
        assigned, last = self._assigned, self._last
        if assigned is None or last is None:
            return
        chosen = self.net.codebook.step(assigned, self.decay)
        self.log("train/codes_used", (chosen > 0).float().mean())
        if self.restart_below:
            moved = self.net.codebook.restart(*last, self.restart_below)
            self.log("train/codes_restarted", float(moved))
        self._assigned = self._last = None

    def forget_loads(self) -> None:
        """The step is left out: codes do not move either."""
        super().forget_loads()
        self._assigned = self._last = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._assigned = self._last = None


def _mean(cost: Tensor, valid: Tensor) -> Prediction:
    """The mean over the patches (batch patches) of valid images."""
    rows = torch.where(valid[:, None], cost, 0.0).flatten()
    predicted = valid.sum() * cost.shape[1]
    return Prediction(rows.sum() / predicted.clamp(min=1), None, predicted, exact_sum(rows))
