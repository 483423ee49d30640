"""Training and evaluating a task on given batches, without anything that prints or writes."""

from functools import partial

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from mhmoe_mm.optim import AdamW, WarmupConstant
from mhmoe_mm.tasks.base import Task

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
FAST = {
    "optimizer": partial(AdamW, lr=3e-3),
    "schedule": WarmupConstant,
}


def loader(batches) -> DataLoader:
    return DataLoader(batches, batch_size=None)


def train(task: Task, batches, **options) -> Trainer:
    trainer = Trainer(**{"max_steps": len(batches), "log_every_n_steps": 1} | QUIET | options)
    trainer.fit(task, loader(batches))
    return trainer


def validate(task: Task, *batches) -> dict[str, float]:
    return Trainer(**QUIET).validate(task, loader(batches), verbose=False)[0]


def predict(task: Task, *batches) -> list:
    return Trainer(**QUIET).predict(task, loader(batches))


def rows(batch, start: int, end: int):
    """Some rows of a batch."""
    return type(batch)(*(field[start:end] for field in batch))


def same_weights(one: Task, other: Task) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(weight, theirs[name]) for name, weight in one.state_dict().items())
