"""Trainings in processes of their own, to be disturbed from outside."""

import random
import time
from pathlib import Path

import torch

from mhmoe_mm.command_line.program import run
from mhmoe_mm.command_line.resume import newest_whole
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.tasks.base import Task
from tests.language import write_run
from tools.kill_drill import Run

LIMIT_S = 240.0
ENDLESS = ("--trainer.max_steps", "1000000", "--trainer.limit_val_batches", "0")


def project(folder: Path) -> Path:
    """The configuration of a training in which every batch differs."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    words = ["so", "much", "for", "that", "and", "this", "is", "all", "the", "rest"]
    return write_run(folder, [" ".join(draw.choices(words, k=9)) for _ in range(211)])


def started(config: Path, name: str, ranks: int, *options: str) -> Run:
    """A training that can be started; `start` begins or goes on with it."""
    command = ["--config", str(config), *options]
    return Run(name, config.parent / "runs", ranks, command)


def wait_for(what, limit_s: float = LIMIT_S) -> None:
    """Until `what()` is true."""
    end = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < end, f"nothing happened within {limit_s} s"
        time.sleep(0.02)


def weights(run_: Run) -> tuple[int, dict[str, torch.Tensor]]:
    """Step and weights of the newest checkpoint."""
    path = newest_whole(run_.place)
    assert path is not None
    content = read_any(path)
    return content["global_step"], content["state_dict"]


def calm(config: Path, name: str, steps: int, *options: str) -> dict[str, torch.Tensor]:
    """The weights of the same training without disturbance, in this process."""
    command = ["fit", "--config", str(config), "--name", name, "--trainer.max_steps", str(steps)]
    assert run([*command, *options], Task) == 0
    path = newest_whole(config.parent / "runs" / name)
    assert path is not None
    return read_any(path)["state_dict"]
