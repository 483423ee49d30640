"""Ends a process that has got stuck, so that the others do not wait for it for ever."""

import faulthandler
import os
import sys
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

EXIT_STATUS = 70
"""Of a process that was stuck: "internal software error" in sysexits.h."""

THREAD = "mhmoe-mm watchdog"


class Watchdog(Callback):
    """Ends this process if nothing has happened for `timeout_s`: no batch, no checkpoint.

    Before, it says which rank and step it is and what every thread of it is doing. A signal would
    not do: a process that waits for others in an exchange does not hear it. The other ranks then
    end because this one is gone.

    Args:
        timeout_s: longer than the longest step, compilation and checkpoint together; 0: never.
    """

    def __init__(self, timeout_s: float = 1800.0):
        super().__init__()
        if timeout_s < 0:
            raise ValueError(f"timeout_s is a number of seconds, 0 or more, got {timeout_s}.")
        self.timeout_s = timeout_s
        self._beat = 0.0
        self._where = ""
        self._done: threading.Event | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not self.timeout_s or self._done is not None:
            return
        self._alive(trainer)
        self._done = threading.Event()
        threading.Thread(target=self._watch, args=(self._done,), name=THREAD, daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """A program may go on after a failed fit; one of several ranks may hang as it ends."""
        if trainer.world_size == 1:
            self._stop()

    def _stop(self) -> None:
        if self._done is not None:
            self._done.set()
            self._done = None

    def _alive(self, trainer: Trainer, *event: Any, **more: Any) -> None:
        self._beat = time.monotonic()
        self._where = f"rank {trainer.global_rank} of {trainer.world_size}, {trainer.global_step}"

    on_train_batch_start = on_train_batch_end = _alive
    on_validation_batch_start = on_validation_batch_end = _alive
    on_test_batch_end = on_predict_batch_end = _alive
    on_validation_end = on_save_checkpoint = _alive

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(min(5.0, self.timeout_s / 10)):
            if time.monotonic() - self._beat > self.timeout_s:
                self._end()

    def _end(self) -> None:
        print(
            f"mhmoe-mm: error: nothing has happened for {self.timeout_s:g} s ({self._where} steps "
            "done), so this process ends. What its threads are doing is below; "
            "--watchdog.timeout_s is how long it waits.",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_STATUS)
