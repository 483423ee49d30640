"""Run by test_finite_guard on ranks: rank 1 alone has a bad batch, under DDP and FSDP."""

import os
import sys

import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from mhmoe_mm.callbacks.finite_guard import FiniteGuard
from mhmoe_mm.parallel.norms import local
from mhmoe_mm.parallel.strategy import FSDP2
from tests.callbacks.test_finite_guard import BATCHES, Poisoned
from tests.tasks.training import train

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    ddp = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    for strategy in (ddp, FSDP2()):
        task = Poisoned({1} if rank else set())
        try:
            train(
                task, BATCHES[:3], callbacks=[FiniteGuard()], devices=2, strategy=strategy,
                use_distributed_sampler=False, logger=CSVLogger(sys.argv[1]),
            )  # fmt: skip
        except FloatingPointError as error:
            assert all(local(w).isfinite().all() for w in task.parameters())
            assert task.trainer.global_step == 1
            if rank == 0:
                print(error)
        else:
            raise AssertionError("the run went on")
        assert torch.distributed.get_world_size() == 2
