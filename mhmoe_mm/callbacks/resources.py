"""What a training took: time per step, memory, and what the network that it trained costs."""

import json
import resource
import statistics
import sys
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mhmoe_mm.callbacks.run_folder import run_folder
from mhmoe_mm.models.net_cost import net_cost
from mhmoe_mm.storage.whole import write_text


class Resources(Callback):
    """Writes `resources.json` into the run's folder when a fit ends.

        {"device": "cpu", "steps": 1990, "seconds_per_step": 0.051,
         "median_seconds_per_step": 0.049, "peak_memory_bytes": 734003200,
         "net": {"parameters": 2280000, ...}}         see `NetCost`

    A step lasts from the end of one to the end of the next, waiting for data included, validation
    excluded; the median is the figure to compare where other work shares the machine. Memory is
    the largest resident set of the process on a CPU, the interpreter and its libraries included,
    and what the allocator gave out at most on a GPU. With several processes both are the first's.

    Args:
        skip_steps: that many at the beginning are not timed: caches and clocks warm up.
    """

    def __init__(self, skip_steps: int = 10):
        if skip_steps < 0:
            raise ValueError(f"skip_steps is 0 or more, got {skip_steps}.")
        self.skip_steps = skip_steps
        self._seconds: list[float] = []
        self._mark: float | None = None
        self._step, self._skip_until = 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._seconds, self._mark, self._step = [], None, trainer.global_step
        self._skip_until = trainer.global_step + self.skip_steps

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._mark is None:
            self._mark = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # a batch that is accumulated
        now = time.perf_counter()
        if self._mark is not None and trainer.global_step > self._skip_until:
            self._seconds.append(now - self._mark)
        self._mark, self._step = now, trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = run_folder(trainer)
        if folder is None or not trainer.is_global_zero:
            return
        seconds = self._seconds
        content = {
            "device": pl_module.device.type,
            "steps": len(seconds),
            "seconds_per_step": statistics.mean(seconds) if seconds else None,
            "median_seconds_per_step": statistics.median(seconds) if seconds else None,
            "peak_memory_bytes": peak_memory(pl_module.device),
        }
        if isinstance(net := getattr(pl_module, "net", None), torch.nn.Module):
            content["net"] = net_cost(net)._asdict()
        write_text(folder / "resources.json", json.dumps(content, indent=1) + "\n")


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has had, in bytes: on a GPU since the fit began, on a CPU
    since the process did.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
