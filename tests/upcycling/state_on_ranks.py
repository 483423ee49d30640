"""Run by test_optimizer_state on ranks: a sharded fit that starts from an upcycled model."""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor

from mhmoe_mm.checkpoint.moments import read_moments
from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task


class Compared(Callback):
    """Before the first step, the optimizer's state put together is that in the file."""

    def __init__(self, folder: Path):
        self.folder, self.sharded = folder, 0

    def on_train_start(self, trainer, task) -> None:
        wanted, state = read_moments(self.folder), trainer.optimizers[0].state
        assert wanted is not None
        params = dict(task.named_parameters())
        assert {name for name, param in params.items() if param in state} == wanted.keys()
        for name, held in wanted.items():
            for what in ("exp_avg", "exp_avg_sq"):
                found = state[params[name]][what]
                if isinstance(params[name], DTensor):
                    assert found.placements == params[name].placements
                    found, self.sharded = found.full_tensor(), self.sharded + 1
                assert torch.equal(found, getattr(held, what)), name


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    command = build(
        [
            "fit", "--config", str(folder / "run.yaml"), "--model.net",
            str(folder / "sparse.yaml"), "--model.init_from", str(folder / "out"),
            "--trainer.max_steps", "2", "--trainer.devices", "2", "--name", "ranks",
            "--trainer.strategy", "mhmoe_mm.parallel.strategy.FSDP2",
            "--trainer.strategy.init_args.expert_parallel", "2",
        ],
        Task,
    )  # fmt: skip
    compared = Compared(folder / "out")
    command.trainer.callbacks.append(compared)
    command.execute()
    assert compared.sharded
    steps = {int(held["step"]) for held in command.trainer.optimizers[0].state.values()}
    assert steps == {2, 5}
