"""Callbacks that a test puts into a training to disturb it from within."""

import os
import signal
import time

from lightning.pytorch import Callback


class Trouble(Callback):
    """Rank 1 gets into trouble at the beginning of its third step."""

    def __init__(self, kind: str):
        self.kind = kind

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank != 1 or batch_idx < 2:
            return
        if self.kind == "hangs":
            time.sleep(3600)
        if self.kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("rank 1 fails")
