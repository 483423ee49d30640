"""Sentences about pairs of images: from `.left.*`, `.right.*` and `statements` to `Nlvr2Batch`.

{"statements": [{"identifier": "dev-850-0-1", "sentence": "...", "label": true}]}
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.reading import Sample
from datamodules.task_rows import Entry, Setting, TaskRows, TaskSamples
from datamodules.transforms import seen
from mhmoe_mm.batches import Nlvr2Batch
from mhmoe_mm.inputs.pixels import stack_pixels
from mhmoe_mm.inputs.texts import stack_tokens


class Nlvr2Row(NamedTuple):
    """A sentence and the two images it is about."""

    left: Tensor
    right: Tensor
    token: list[int]
    label: bool
    identifier: str
    key: str
    valid: bool = True

    def silent(self) -> "Nlvr2Row":
        """The same row as padding."""
        return self._replace(valid=False)


class Nlvr2Samples(TaskSamples):
    """Every sentence about a pair of images is a row."""

    def rows(self, setting: Setting) -> "Nlvr2Rows":
        return Nlvr2Rows(setting)


class Nlvr2Rows(TaskRows):
    """Sentences of one split as rows; the two images are augmented each by itself."""

    expands = "nlvr2"

    def __init__(self, setting: Setting):
        self.setting = setting

    def parts(self, sample: Sample) -> tuple[list[int], int]:
        return list(range(len(statements_of(sample)))), 0

    def __call__(self, entry: Entry, choice: random.Random) -> Nlvr2Row:
        return self.begin(entry, choice)()

    def begin(self, entry: Entry, choice: random.Random) -> Callable[[], Nlvr2Row]:
        sample, setting = entry.sample, self.setting
        statement = statements_of(sample)[entry.part]
        token = setting.encode(statement["sentence"])

        def finish() -> Nlvr2Row:
            left, right = (
                seen(sample.encoded(side), setting.view, setting.training, choice)
                for side in ("left", "right")
            )
            return Nlvr2Row(
                left, right, token, statement["label"], statement["identifier"], sample.name
            )

        return finish

    def collate(self, rows: list[Nlvr2Row]) -> Nlvr2Batch:
        token, pad = stack_tokens(
            [row.token for row in rows], self.setting.pad, self.setting.source.max_tokens
        )
        return Nlvr2Batch(
            left=stack_pixels([row.left for row in rows]),
            right=stack_pixels([row.right for row in rows]),
            token=token,
            pad=pad,
            label=torch.tensor([int(row.label) for row in rows]),
            identifier=[row.identifier for row in rows],
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )


def statements_of(sample: Sample) -> list[dict[str, Any]]:
    """The `statements` of a sample's `.json`, checked."""
    statements = sample.about().get("statements")
    if not isinstance(statements, list) or not statements:
        raise sample.error("statement", 'has no sentences in a field "statements"', "json")
    kinds = {"identifier": str, "sentence": str, "label": bool}
    for number, one in enumerate(statements):
        right = isinstance(one, dict) and all(
            isinstance(one.get(field), kind) for field, kind in kinds.items()
        )
        if not right:
            form = '{"identifier": "...", "sentence": "...", "label": true}'
            raise sample.error(
                "statement", f"has statements[{number}] that is not of the form {form}", "json"
            )
    return statements
