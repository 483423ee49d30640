"""Visual question answering: choose among the answers of a vocabulary.

Every answer has a soft score, how many people gave it; the network learns all scores at once.
Source: https://arxiv.org/abs/2208.10442, section 3.1, and the code released with it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhmoe_mm.batches import VqaBatch, normalized
from mhmoe_mm.losses import soft_binary_cross_entropy
from mhmoe_mm.metrics.vqa_accuracy import Annotation, SoftScore, VqaAccuracy, read_annotations
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.heads import AnswerHead, Pooler
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.prediction_files import JsonList
from mhmoe_mm.tasks.base import OptimizerFactory, Outcome, ScheduleFactory, Task

_UNASKED = Annotation((), "", "")
"""Of a row that only fills up a batch."""


class VQA(Task):
    """Answers to questions about images.

    Checkpoints hold the answers beside the weights, and are refused where the answers differ.

    Args:
        net: the multiway encoder; the released models have `normalize_output=False` here.
        answers: the vocabulary, a JSON file with a list of strings or the strings themselves, in
            the order of the shards' soft scores.
        annotations: files in the format of VQA v2, for the official accuracy of evaluations and the
            accuracy by type; without one, an evaluation gives the mean soft score.
        optimizer, schedule, balance_weight, z_weight, init_from: as in Task.
    """

    prediction_file = JsonList("predictions.json", unique="question_id")

    def __init__(
        self,
        net: BEiT3,
        answers: str | list[str],
        annotations: Sequence[str] = (),
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__(
            net, {"answer": 1.0}, optimizer, schedule, balance_weight, z_weight, init_from
        )
        self.net: BEiT3 = net
        self.answers = read_answers(answers) if isinstance(answers, str) else list(answers)
        self.annotations = {
            question: annotation
            for path in annotations
            for question, annotation in read_annotations(path).items()
        }
        self.accuracy = VqaAccuracy() if annotations else SoftScore()
        self.pooler = Pooler(net.dim)
        self.head = AnswerHead(net.dim, len(self.answers))

    def losses(self, batch: VqaBatch) -> Outcome:
        return self._judge(batch)[0]

    def evaluate(self, batch: VqaBatch) -> Outcome:
        outcome, logits = self._judge(batch)
        if isinstance(self.accuracy, SoftScore):
            self.accuracy.update(logits, batch.target, batch.valid)
        else:
            self._update_official(self.accuracy, batch, logits)
        return outcome

    def predict(self, batch: VqaBatch) -> list[dict[str, Any]]:
        """`question_id` and `answer` of every question, as the official server takes them."""
        rows = zip(batch.question_id, self._written(self.scores(batch)[0]), strict=True)
        return [{"question_id": question, "answer": answer} for question, answer in rows]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["answers"] = self.answers

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        there = checkpoint.get("answers", self.answers)
        if there != self.answers:
            both = zip(there, self.answers, strict=False)
            differ = (i for i, (old, new) in enumerate(both) if old != new)
            at = next(differ, min(len(there), len(self.answers)))
            raise ValueError(
                f"The checkpoint was trained with {len(there)} answers and here are "
                f"{len(self.answers)}; they first differ at number {at}. Use the answers that it "
                "was trained with."
            )

    def _judge(self, batch: VqaBatch) -> tuple[Outcome, Tensor]:
        if batch.target.shape[1] != len(self.answers):
            raise ValueError(
                f"The data score {batch.target.shape[1]} answers, but the task knows "
                f"{len(self.answers)}: give both the same answers file."
            )
        logits, loads = self.scores(batch)
        prediction = soft_binary_cross_entropy(logits, batch.target, batch.valid)
        chosen = batch.target.gather(1, logits.detach().argmax(dim=1, keepdim=True))[:, 0]
        score = torch.where(batch.valid, chosen, 0.0).sum() / prediction.predicted.clamp(min=1)
        return Outcome({"answer": prediction}, loads, {"accuracy": score}), logits

    def scores(self, batch: VqaBatch) -> tuple[Tensor, dict[str, Load]]:
        """Logits (batch answers), whose sigmoid says how right each is; the loads."""
        encoded = self.net(normalized(batch.pixel), batch.token, batch.pad)
        return self.head(self.pooler(encoded.hidden[:, 0])), encoded.loads

    def _written(self, logits: Tensor) -> list[str]:
        return [self.answers[i] for i in logits.argmax(dim=1).tolist()]

    def _update_official(self, accuracy: VqaAccuracy, batch: VqaBatch, logits: Tensor) -> None:
        missing = [
            question
            for question, valid in zip(batch.question_id, batch.valid.tolist(), strict=True)
            if valid and str(question) not in self.annotations
        ]
        if missing:
            raise ValueError(
                f"{len(missing)} questions have no annotation, such as {missing[0]}: name the "
                "annotations of this evaluation's questions, or none."
            )
        known = [self.annotations.get(str(q), _UNASKED) for q in batch.question_id]
        accuracy.update(self._written(logits), known, batch.question_id, batch.valid)


def read_answers(path: str) -> list[str]:
    """The answers in a JSON file, in its order.

    Raises:
        ValueError: there is no such file, or it holds something else, or an answer twice.
    """
    try:
        answers = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"There is no list of answers at {path}; `python -m tools.build_shards` writes one."
        ) from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path} is not a JSON list of strings, one per answer.")
    if not answers or len(set(answers)) < len(answers):
        raise ValueError(
            f"{path} has {len(answers)} answers, {len(set(answers))} of them different: every "
            "answer belongs there once, and one at least."
        )
    return answers
