"""Questions about images: from the `qa` of a sample's `.json` to `VqaBatch`.

    {"qa": [{"question": "...", "answer": "blue", "question_id": 7,
             "answers": ["blue", "blue", "teal", ... 10]}]}

Ten people's answers give soft targets, as BEiT-3 and the official accuracy have it: an answer that
n of them gave counts 0.3, 0.6, 0.9 and from n = 4 on 1. One answer alone counts 1. `answer` and
`answers` are looked up as they are written.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.answers import NameList
from datamodules.reading import Sample
from datamodules.task_rows import Entry, Setting, TaskRows, TaskSamples
from datamodules.transforms import seen
from mhmoe_mm.batches import VqaBatch
from mhmoe_mm.inputs.pixels import stack_pixels
from mhmoe_mm.inputs.texts import stack_tokens

SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)


class VqaRow(NamedTuple):
    """A question about an image; `target` has the answers that are not quite wrong."""

    pixel: Tensor
    token: list[int]
    target: dict[int, float]
    question_id: str | int
    key: str
    valid: bool = True

    def silent(self) -> "VqaRow":
        """The same row as padding."""
        return self._replace(valid=False)


class VqaSamples(TaskSamples):
    """Every question is a row. In training, questions with no answer in the vocabulary are left out
    and counted; an evaluation keeps them, and no answer to them is right.

    Args:
        answers: the vocabulary, an `answers.json`.
    """

    def __init__(self, answers: str):
        self.answers = answers

    def classes(self) -> NameList:
        """The answers, read when they are first asked for."""
        if not hasattr(self, "_vocabulary"):
            self._vocabulary = NameList(self.answers, "answers")
        return self._vocabulary

    def rows(self, setting: Setting) -> "VqaRows":
        return VqaRows(setting, self.classes())


class VqaRows(TaskRows):
    """Questions of one split as rows."""

    def __init__(self, setting: Setting, vocabulary: NameList):
        self.setting = setting
        self.vocabulary = vocabulary
        self.expands = "vqa", vocabulary.sha256 if setting.training else None

    def parts(self, sample: Sample) -> tuple[list[int], int]:
        questions = questions_of(sample, sample.about())
        if not self.setting.training:
            return list(range(len(questions))), 0
        known = [i for i, qa in enumerate(questions) if self.target(qa)]
        return known, len(questions) - len(known)

    def __call__(self, entry: Entry, choice: random.Random) -> VqaRow:
        return self.begin(entry, choice)()

    def begin(self, entry: Entry, choice: random.Random) -> Callable[[], VqaRow]:
        sample = entry.sample
        about = sample.about()
        qa = questions_of(sample, about)[entry.part]
        token = self.setting.encode(qa["question"])
        own = f"{about.get('id', sample.name)}#{entry.part}"
        target, question_id = self.target(qa), qa.get("question_id", own)

        def finish() -> VqaRow:
            pixel = seen(sample.encoded(), self.setting.view, self.setting.training, choice)
            return VqaRow(pixel, token, target, question_id, sample.name)

        return finish

    def target(self, qa: Mapping[str, Any]) -> dict[int, float]:
        """Answers that are in the vocabulary, with their scores."""
        place = self.vocabulary.place
        if "answers" not in qa:
            return {place[qa["answer"]]: 1.0} if qa.get("answer") in place else {}
        given = Counter(answer for answer in qa["answers"] if answer in place)
        most = len(SCORES) - 1
        return {place[answer]: SCORES[min(count, most)] for answer, count in given.items()}

    def collate(self, rows: list[VqaRow]) -> VqaBatch:
        token, pad = stack_tokens(
            [row.token for row in rows], self.setting.pad, self.setting.source.max_tokens
        )
        target = torch.zeros(len(rows), len(self.vocabulary))
        for number, row in enumerate(rows):
            for answer, score in row.target.items():
                target[number, answer] = score
        return VqaBatch(
            pixel=stack_pixels([row.pixel for row in rows]),
            token=token,
            pad=pad,
            target=target,
            question_id=[row.question_id for row in rows],
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )


def questions_of(sample: Sample, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The `qa` of what a sample's `.json` says, checked."""
    questions = about.get("qa")
    if not isinstance(questions, list) or not questions:
        raise sample.error("question", 'has no questions in a field "qa"', "json")
    for number, qa in enumerate(questions):
        answers = qa.get("answers", []) if isinstance(qa, dict) else None
        fields = [qa.get("question"), qa.get("answer", ""), *answers] if answers is not None else []
        if not fields or not fields[0] or not all(isinstance(text, str) for text in fields):
            raise sample.error("question", f"has no usable question in qa[{number}]", "json")
    return questions
