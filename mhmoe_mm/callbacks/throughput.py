"""How fast a training goes, and what its steps wait for."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from mhmoe_mm.callbacks.step_clock import StepClock
from mhmoe_mm.models.flops import Flops

STARVED = 0.1
"""Share of the time that waiting for data may take before it is said."""


class Throughput(Callback):
    """Logs, every `log_every_n_steps`, under `throughput/`:

        samples_per_s, tokens_per_s     of all ranks; tokens that are read, padding left out
        data, forward, backward, optimizer, other
                                        shares of the time; data is the wait for the next batch
                                        and what callbacks do between batches
        tflops_per_s                    of one rank, the model's: three times the forward's matrix
                                        products and attention, counted once, at the first step
        mfu                             that by `peak_tflops`

    Validations do not count, nor do the first `skip_steps`. A device is not waited for: on a GPU
    times are taken by its own events and read when they are logged. Where waiting for data takes
    more than a tenth of the time, it says so once.

    Args:
        peak_tflops: what the device can do at most, in the precision of the training, in 1e12
            operations a second; None: no `mfu`.
        count_operations: whether operations are counted at the first step; of compiled blocks they
            cannot be.
        skip_steps: batches at the beginning that are not timed.
    """

    def __init__(
        self,
        peak_tflops: float | None = None,
        count_operations: bool = True,
        skip_steps: int = 5,
    ):
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"peak_tflops is a positive number, got {peak_tflops}.")
        if skip_steps < 0:
            raise ValueError(f"skip_steps is 0 or more, got {skip_steps}.")
        self.peak_tflops, self.count_operations = peak_tflops, count_operations
        self.skip_steps = skip_steps
        self._clock = StepClock(torch.device("cpu"))
        self._flops: Flops | None = None
        """While the operations of a forward are counted."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._every = max(1, getattr(trainer, "log_every_n_steps", 0) or 0)
        self._clock = StepClock(pl_module.device)
        self._forward_flops = math.nan
        self._counting = self.count_operations
        self._starved = False
        self._seen, self._logged_at = 0, trainer.global_step
        self._restart(pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._clock.mark("data")
        if self._seen >= self.skip_steps:
            self._samples += num_samples(batch)
            self._tokens += num_tokens(batch, pl_module)
        if self._counting:
            self._flops = Flops()
            self._flops.__enter__()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self._flops is not None:
            self._forward_flops = self._stop_counting(self._flops)
        self._clock.mark("forward")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.mark("backward")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._clock.mark("optimizer")
        self._seen += 1
        if self._seen <= self.skip_steps:
            self._restart(pl_module)
            return
        self._batches += 1
        step = trainer.global_step
        if step % self._every == 0 and step != self._logged_at:
            self._logged_at = step
            self._log(trainer, pl_module)
            self._restart(pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._flops is not None:
            self._stop_counting(self._flops)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.mark("other")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.skip()

    def _stop_counting(self, flops: Flops) -> float:
        flops.__exit__(None, None, None)
        self._flops, self._counting = None, False
        return flops.total

    def _restart(self, module: LightningModule) -> None:
        self._clock.restart()
        self._samples, self._batches = 0, 0
        self._tokens = torch.zeros((), device=module.device)

    def _log(self, trainer: Trainer, module: LightningModule) -> None:
        seconds, whole = self._clock.read()
        reduce = trainer.strategy.reduce
        count = torch.stack([self._tokens.new_tensor(float(self._samples)), self._tokens.float()])
        samples, tokens = reduce(count, reduce_op="sum").tolist()
        values = {"samples_per_s": samples / whole, "tokens_per_s": tokens / whole}
        values |= {part: spent / whole for part, spent in seconds.items()}
        if not math.isnan(self._forward_flops):
            rate = 3 * self._forward_flops * self._batches / whole / 1e12
            values["tflops_per_s"] = rate
            if self.peak_tflops is not None:
                values["mfu"] = rate / self.peak_tflops
        module.log_dict({f"throughput/{name}": value for name, value in values.items()})
        if values["data"] > STARVED and not self._starved:
            self._starved = True
            rank_zero_warn(
                f"{values['data']:.0%} of the time goes into waiting for data: more "
                "`data.loading.workers` may help, or images that are stored smaller."
            )


def num_samples(batch: Any) -> int:
    """Rows of a batch, or of its parts together."""
    key = getattr(batch, "key", None)
    if key is not None:
        return len(key)
    return sum(num_samples(part) for part in batch if part is not None) if _nested(batch) else 0


def num_tokens(batch: Any, module: LightningModule) -> int | Tensor:
    """Tokens that a network reads: texts without padding, and patches with the class token."""
    if _nested(batch):
        return sum(num_tokens(part, module) for part in batch if part is not None)
    total: int | Tensor = 0
    token, pad = getattr(batch, "token", None), getattr(batch, "pad", None)
    if token is not None:
        total = token.numel() if pad is None else (~pad).sum()
    embedding = getattr(getattr(module, "net", None), "image_embedding", None)
    for name in ("pixel", "left", "right"):
        if embedding is not None and (pixel := getattr(batch, name, None)) is not None:
            total = total + len(pixel) * (embedding.num_patches + 1)
    return total


def _nested(batch: Any) -> bool:
    """Whether it is several batches, such as images, texts and pairs."""
    return isinstance(batch, tuple) and not hasattr(batch, "key")
