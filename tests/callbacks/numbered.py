"""The smallest task with predictions, and data for it: rows that are numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mhmoe_mm.callbacks.prediction_writer import PredictionWriter
from mhmoe_mm.prediction_files import JsonList
from mhmoe_mm.tasks.base import Outcome, Task


class NumberBatch(NamedTuple):
    number: Tensor
    valid: Tensor
    key: list[str]


class Squares(Task):
    """Predicts the square of a number, and counts how often it is asked to."""

    prediction_file = JsonList("predictions.json", unique="number")

    def __init__(self):
        super().__init__(nn.Linear(1, 1), {})
        self.forwards: list[list[int]] = []

    def losses(self, batch: Any) -> Outcome:
        return Outcome({}, {})

    def predict(self, batch: NumberBatch) -> list[dict[str, Any]]:
        numbers = batch.number.tolist()
        self.forwards.append(numbers)
        return [{"number": number, "square": number**2} for number in numbers]


def rows(
    numbers: Iterable[int], batch_size: int = 3, unread: Iterable[int] = ()
) -> DataLoader[NumberBatch]:
    """A loader of these numbers, of which some could not be read."""
    lost = set(unread)

    def batch(chosen: list[int]) -> NumberBatch:
        valid = torch.tensor([number not in lost for number in chosen])
        return NumberBatch(torch.tensor(chosen), valid, [f"shard/{number}" for number in chosen])

    return DataLoader(list(numbers), batch_size, collate_fn=batch)


def predict(
    folder: Path, loader: Any, task: Task | None = None, of: str = "a", **options: Any
) -> Task:
    """Predict into a folder; `of` is what the predictions depend on."""
    task = task or Squares()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(str(folder), lambda: {"weights": of})],
        **options,
    )
    trainer.predict(task, loader, return_predictions=False)
    return task
