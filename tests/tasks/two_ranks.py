"""Run by test_retrieval_ranks on ranks: the gradients of two ranks that hold half a batch."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from mhmoe_mm.tasks.retrieval import Retrieval
from tests.tasks.batches import captioned, small_net
from tests.tasks.training import FAST, QUIET, loader, rows

ROWS = 6


class Recording(Retrieval):
    """Keeps the gradients and loss of its one step."""

    def on_before_optimizer_step(self, optimizer) -> None:
        named = self.named_parameters()
        self.gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}


def recording() -> Recording:
    torch.manual_seed(0)
    return Recording(small_net(), same_image_is_wrong=False, **FAST)


def step(task: Recording, batch, **options) -> dict[str, torch.Tensor]:
    trainer = Trainer(**{"max_steps": 1, "log_every_n_steps": 1} | QUIET | options)
    trainer.fit(task, loader([batch]))
    return task.gradients


if __name__ == "__main__":
    task, whole = recording(), captioned(ROWS, same=2)
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    rank = int(os.environ["RANK"])
    half = rows(whole, rank * ROWS // 2, (rank + 1) * ROWS // 2)
    gradients = step(task, half, devices=2, strategy=strategy, use_distributed_sampler=False)
    if rank == 0:
        torch.save(gradients, Path(sys.argv[1]) / "gradients.pt")
