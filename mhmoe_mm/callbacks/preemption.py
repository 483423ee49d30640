"""Ends a run in good order when it is told to: the machine is wanted for something else."""

import os
import signal
import sys
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from mhmoe_mm.callbacks.checkpoints import Checkpoints
from mhmoe_mm.parallel.agreement import any_rank

EXIT_STATUS = 128 + signal.SIGTERM


class Preempted(SystemExit):
    """The run was told to end, and has saved what it came to."""

    def __init__(self) -> None:
        super().__init__(EXIT_STATUS)


class Preemption(Callback):
    """On SIGTERM or SIGUSR1 saves a checkpoint and ends the run with the exit status 143.

    A signal to one rank is enough: the ranks ask each other after every optimizer step that is a
    multiple of `every_n_steps`, and save together. During a validation the run first comes back to
    training. A second signal ends the process at once. Under SLURM, SIGUSR1 remains Lightning's: it
    saves and puts the job back into the queue.

    Args:
        every_n_steps: how often ranks ask each other; one process alone always looks.
    """

    def __init__(self, every_n_steps: int = 5):
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps is 1 or more, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self._told: str | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Later than Lightning sets its own handlers, which end a run without saving."""
        signals = [signal.SIGTERM]
        environment = trainer._accelerator_connector.cluster_environment
        if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
            signals.append(signal.SIGUSR1)
        for number in signals:
            self._before[number] = signal.signal(number, self._handle)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # half a step cannot be saved
        told = self._told is not None
        if trainer.world_size > 1:
            if trainer.global_step % self.every_n_steps:
                return
            told = any_rank(told, trainer.strategy.root_device)
        if told:
            self._end(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self._told is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._told = name
        os.write(sys.stderr.fileno(), f"{name}: the run saves after this step and ends\n".encode())

    def _end(self, trainer: Trainer) -> None:
        path = None
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, Checkpoints):
                path = keeper.save_now(trainer)
        if trainer.is_global_zero:
            told = f"saved step {trainer.global_step} to {path}" if path else "nothing is saved"
            print(
                f"told to end ({self._told or 'another rank'}): {told}; "
                "`--ckpt_path last` goes on from there",
                file=sys.stderr,
                flush=True,
            )
        raise Preempted
