"""How right answers to questions about images are: against ten people, or by soft scores."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from mhmoe_mm.metrics.packed import gather_bytes, kept, packed_rows, unpacked_rows
from mhmoe_mm.metrics.vqa_answers import normalized, stripped

SOFT_SCORE_UNITS = 2**24
"""Soft scores are summed in whole parts of one, so that no digit depends on the order."""


class Annotation(NamedTuple):
    """What people answered to one question."""

    answers: tuple[str, ...]
    """One per person, ten as a rule."""
    question_type: str
    """First words of the question, such as `how many`."""
    answer_type: str
    """`yes/no`, `number` or `other`."""


def read_annotations(path: str | Path) -> dict[str, Annotation]:
    """Annotations by question id (as a string), from a file in the format of VQA v2."""
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    try:
        return {
            str(entry["question_id"]): Annotation(
                tuple(answer["answer"] for answer in entry["answers"]),
                entry["question_type"],
                entry["answer_type"],
            )
            for entry in content["annotations"]
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an annotation file of VQA v2: {type(error).__name__}: {error}."
        ) from error


def answer_accuracy(answer: str, people: tuple[str, ...]) -> float:
    """How right an answer is, from 0 to 1.

    Against all but one of the people it scores a third for each who gave it, at most 1; the mean is
    over the one left out. Answers are normalized only if the people differ: against ten times
    `yes`, the answer `Yes` scores 0.
    """
    if len(people) < 4:
        raise ValueError(
            f"The VQA accuracy needs the answers of at least 4 people, and of 10 as a rule, but "
            f"there are {len(people)}; where each question has one answer, use SoftScore."
        )
    said, given = [stripped(person) for person in people], stripped(answer)
    if len(set(said)) > 1:
        said, given = [normalized(person) for person in said], normalized(given)
    same = said.count(given)
    return math.fsum(min(1, (same - (person == given)) / 3) for person in said) / len(said)


class VqaAccuracy(Metric):
    """The official VQA accuracy: of all questions, and by type of question and answer."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_bytes)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        answer: list[str],
        annotation: list[Annotation],
        question_id: list[str | int],
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch of answers; rows where `valid` is false do not count."""
        rows = []
        for i in kept(valid, len(answer)):
            people, question_type, answer_type = annotation[i]
            right = answer_accuracy(answer[i], people)
            rows.append([question_id[i], right, question_type, answer_type])
        self.rows.append(packed_rows(rows, self.device))

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, `question_type/<type>` and `answer_type/<type>`, from 0 to 1.

        Empty if nothing was answered.
        """
        scores: dict[str, list[float]] = defaultdict(list)
        for _, right, question_type, answer_type in unpacked_rows(self.rows):
            scores["accuracy"].append(right)
            scores[f"question_type/{question_type}"].append(right)
            scores[f"answer_type/{answer_type}"].append(right)
        # fsum, as the order of the answers is that of the ranks; sorted for the same reason.
        return {
            name: torch.tensor(math.fsum(every) / len(every))
            for name, every in sorted(scores.items())
        }


class SoftScore(Metric):
    """Mean soft score of the answers with the largest logit.

    The accuracy, where one answer scores 1 and all others 0.
    """

    full_state_update = False
    score: Tensor
    answered: Tensor
    answerable: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("score", "answered", "answerable"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch: logits and soft scores (batch answers).

        Rows where `valid` is false do not count.
        """
        known = target.any(dim=1) if valid is None else target.any(dim=1) & valid
        chosen = target.gather(1, logits.argmax(dim=1, keepdim=True)).squeeze(1)
        if valid is not None:
            chosen = chosen[valid]
        # Not in place: a state that was reset in inference mode may only be replaced outside it.
        self.score = self.score + (chosen.float() * SOFT_SCORE_UNITS).round().long().sum()
        self.answered = self.answered + len(chosen)
        self.answerable = self.answerable + known.sum()

    def compute(self) -> dict[str, Tensor]:
        """`accuracy`, from 0 to 1; empty if nothing was answered.

        Raises:
            ValueError: no answer could be right, as where the true answers are not published.
        """
        if not self.answered:
            return {}
        if not self.answerable:
            raise ValueError(
                f"None of the {int(self.answered)} questions has an answer that the vocabulary "
                "holds, so there is no accuracy: if their answers are kept secret, predict them "
                "(`mhmoe-mm predict`)."
            )
        mean = self.score.item() / SOFT_SCORE_UNITS / self.answered.item()
        return {"accuracy": torch.tensor(mean)}
