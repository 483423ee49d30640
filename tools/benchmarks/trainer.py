"""What the trainer costs: steps as `mhmoe-mm fit` takes them, beside the same steps in a bare loop.

    python -m tools.benchmarks.trainer
    python -m tools.benchmarks.trainer -- --config conf/trainer/cpu.yaml --config conf/runs/...

Without a command it is the quickstart's, on its own data. Phases alternate: some steps of the
training, with its data, callbacks, logging and guards, then as many in which the same network
reads the same batches and nothing is left but forward, backward, clipping and the optimizer. Two
figures come of it: the share of a training's time outside forward, backward and optimizer, and how
much longer its steps are than bare ones. Validations are left out.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from mhmoe_mm.callbacks.step_clock import PARTS, StepClock
from mhmoe_mm.command_line.failures import sentence
from mhmoe_mm.command_line.program import build
from mhmoe_mm.command_line.sources import Sources
from mhmoe_mm.tasks.base import Task
from tools import quickstart
from tools.build_shards.errors import InputError, run_reporting

OUTSIDE = ("data", "other")
"""Parts of a step that are neither forward nor backward nor optimizer."""


class Phase(NamedTuple):
    """Some steps of a training, then the same steps by themselves."""

    spent: dict[str, float]
    """Seconds of the training by part."""
    bare: float
    """Seconds of the bare loop."""

    @property
    def whole(self) -> float:
        return sum(self.spent.values())


class BareLoop(Callback):
    """After every `steps` steps takes as many itself, on the same batches; ends the training after
    so many `phases` of both.
    """

    def __init__(self, phases: int, steps: int):
        self.wanted, self.steps = phases, steps
        self.phases: list[Phase] = []
        self._batches: list[Any] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = StepClock(pl_module.device)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._clock.mark("data")

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        self._clock.mark("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.mark("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._clock.mark("optimizer")
        self._batches.append(batch)
        if len(self._batches) < self.steps:
            return
        spent, _ = self._clock.read()
        assert isinstance(pl_module, Task)
        optimizer = trainer.optimizers[0]
        self._clock.restart()
        for each in self._batches:
            bare_step(trainer, pl_module, optimizer, each)
        self._clock.mark("other")
        _, bare = self._clock.read()
        self.phases.append(Phase(spent, bare))
        self._batches = []
        trainer.should_stop = len(self.phases) == self.wanted
        self._clock.restart()


def bare_step(trainer: Trainer, task: Task, optimizer: Optimizer, batch: Any) -> None:
    """The loss of `Task`, its gradient, clipped as the trainer clips it, and the optimizer."""
    with trainer.precision_plugin.train_step_context():
        outcome = task.losses(batch)
        losses = [task.objectives[name] * p.loss for name, p in outcome.predictions.items()]
        for load in outcome.loads.values():
            losses.append(task.balance_weight * load.balance + task.z_weight * load.z_loss)
        loss = torch.stack(losses).sum()
    optimizer.zero_grad()  # as Lightning does: gradients of the last step are still there
    loss.backward()
    if trainer.gradient_clip_val is not None:
        torch.nn.utils.clip_grad_norm_(task.parameters(), trainer.gradient_clip_val)
    optimizer.step()


def report(phases: Sequence[Phase], steps: int) -> tuple[list[str], dict[str, float]]:
    """(lines to print, the same figures by name), of all phases but the first."""
    counted = phases[1:]
    total: Counter[str] = Counter()
    for phase in counted:
        total.update(phase.spent)
    share = {part: total[part] / total.total() for part in PARTS}
    longer = [phase.whole / phase.bare - 1 for phase in counted]
    low, high = min(longer), max(longer)
    ms = 1e3 * statistics.median(phase.whole for phase in counted) / steps
    figures = {
        "ms": ms,
        **share,
        "outside": sum(share[part] for part in OUTSIDE),
        "longer": statistics.median(longer),
        "longer_least": low,
        "longer_most": high,
    }
    lines = [
        f"a step of the training {ms:.1f} ms (median of {len(counted)} phases of {steps} steps)",
        "of its time: " + ", ".join(f"{part} {share[part]:.1%}" for part in PARTS),
        f"outside forward, backward and optimizer: {figures['outside']:.1%}",
        f"longer than a bare loop by {figures['longer']:+.1%} (from {low:+.1%} to {high:+.1%})",
    ]
    return lines, figures


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.trainer", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--phases", type=int, default=9, metavar="N", help="the first does not count (9)")
    add("--steps", type=int, default=20, metavar="N", help="of a phase (20)")
    add("--data", type=Path, default=Path("data/shapes"), help="the quickstart's (data/shapes)")
    add("--json", type=Path, help="also write the figures to this file")
    add("command", nargs="*", metavar="-- OPTION", help="of `mhmoe-mm fit`; default: quickstart")
    args = parser.parse_args(argv)
    if args.phases < 2 or args.steps < 1:
        parser.error("--phases is 2 or more and --steps 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the figures, write them where asked."""
    args = parse(argv)
    return run_reporting(lambda: measure(args), "Interrupted; nothing was measured.")


def measure(args: argparse.Namespace) -> int:
    """What `parse` was told."""
    command = args.command
    if not command:
        quickstart.prepare(args.data)
        command = quickstart.options_of("benchmark", quickstart.NETS["MH-MoE"], args.data)
    limits = ["--trainer.max_steps", str(10**6), "--trainer.limit_val_batches", "0"]
    try:
        program = build(["fit", *command, *limits], Task)
    except Exception as error:
        line = sentence(error, Sources(command), ("mhmoe_mm", "datamodules"))
        if line is None:
            raise
        raise InputError(line) from error
    loop = BareLoop(args.phases, args.steps)
    program.trainer.callbacks.append(loop)
    program.execute()
    lines, figures = report(loop.phases, args.steps)
    print("\n".join(lines))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
