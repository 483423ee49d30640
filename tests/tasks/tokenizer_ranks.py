"""Image tokenizers for the tests; as a program, run by test_image_tokenizer on ranks, two
ranks that hold half of each batch.
"""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from mhmoe_mm.models.vqkd import VQKD
from mhmoe_mm.optim import AdamW, WarmupConstant
from mhmoe_mm.tasks.image_tokenizer import ImageTokenizer
from mhmoe_mm.teachers.base import Teacher
from tests.tasks.batches import PATCH, SIZE, pictures
from tests.tasks.training import QUIET, loader, rows

ROWS, STEPS = 6, 3
# Adam would make as much of gradients that are nought but for rounding as of the others.
PLAIN = partial(torch.optim.SGD, lr=0.1)
GENTLE = {"optimizer": partial(AdamW, lr=1e-3), "schedule": WarmupConstant}


class MeanColours(Teacher):
    """A teacher that needs no file: the mean colours of a patch, and their products."""

    def load(self) -> None:
        self.image_size, self.grid, self.feature_dim = SIZE, SIZE // PATCH, 6

    def features(self, image):
        mean = torch.nn.functional.avg_pool2d(image, PATCH).flatten(2).mT
        return torch.cat([mean, mean * mean.roll(1, dims=2)], dim=2)


def tokenizer(**options) -> ImageTokenizer:
    torch.manual_seed(0)
    net = VQKD(SIZE, PATCH, 28, 2, 2, 1, num_codes=11, code_dim=5, feature_dim=6)
    return ImageTokenizer(net, MeanColours(), **{"restart_below": 2.0} | GENTLE | options)


def train(task: ImageTokenizer, batches, **options) -> Trainer:
    """Every part of every batch is a step, unless they are accumulated."""
    trainer = Trainer(**{"max_epochs": 1, "log_every_n_steps": 1} | QUIET | options)
    trainer.fit(task, loader(batches))
    return trainer


if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    halves = [
        rows(pictures(ROWS, step), rank * ROWS // 2, (rank + 1) * ROWS // 2)
        for step in range(STEPS)
    ]
    task = tokenizer(optimizer=PLAIN)
    strategy = DDPStrategy(process_group_backend="gloo")
    train(task, halves, devices=2, strategy=strategy, use_distributed_sampler=False)
    torch.save(task.state_dict(), Path(sys.argv[1]) / f"{rank}.pt")
