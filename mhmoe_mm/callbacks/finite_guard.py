"""Stops a training whose numbers are no longer numbers, before they reach the weights."""

import json
import math
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from mhmoe_mm.callbacks.run_folder import run_folder
from mhmoe_mm.parallel.norms import grad_norm
from mhmoe_mm.storage.whole import write_text
from mhmoe_mm.tasks.base import Task

RECORD = "bad_batch.json"
_NAMED_AT_MOST = 4


class FiniteGuard(Callback):
    """Looks at the loss and at the norm of the gradients before every optimizer step.

    Where one is not finite on any rank, all ranks leave the step out: weights, optimizer and
    routers stay as they are. After more than `skip` such steps in a row the run ends, so that no
    checkpoint is made of what came to nothing. The samples of the step, of all ranks, are written
    to `bad_batch.json` in the run's folder. Costs a pass over the gradients and waits once in a
    step for the device. Where losses are scaled (precision 16-mixed) the scaler leaves steps out
    itself, and only the loss is looked at.

    Args:
        skip: so many steps in a row are left out before the run ends.
        enabled: whether to look at all.
    """

    def __init__(self, skip: int = 0, enabled: bool = True):
        super().__init__()
        if skip < 0:
            raise ValueError(f"skip is a number of steps, 0 or more, got {skip}.")
        self.skip, self.enabled = skip, enabled
        self.left_out = 0
        """Steps that were left out so far."""
        self._in_a_row = 0
        self._keys: list[str] = []
        self._loss: Tensor | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.enabled:
            self._keys += keys_of(batch)

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if self.enabled:  # a sum stays infinite, or no number, whatever is added
            loss = loss.detach().float().sum()
            self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not self.enabled or self._loss is None:
            return
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        look = not (scaled and isinstance(trainer.precision_plugin, MixedPrecision))
        norm = grad_norm(pl_module.parameters()) if look else torch.zeros(())
        seen = torch.stack([self._loss, norm.to(self._loss.device)])
        keys, self._keys, self._loss = self._keys, [], None
        bad = ~seen.isfinite().all()
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad.float(), reduce_op="sum")
        if not bad:
            self._in_a_row = 0
            return
        for param in pl_module.parameters():
            param.grad = None
        if isinstance(pl_module, Task):
            pl_module.forget_loads()
        self._in_a_row += 1
        self.left_out += 1
        told = self._record(trainer, seen.tolist(), keys)
        if self._in_a_row > self.skip:
            raise FloatingPointError(
                f"{told}, so the run ends before this reaches the weights. Look at these samples, "
                "or lower the learning rate; `--guard.skip N` leaves out up to N such steps in a "
                "row."
            )
        rank_zero_info(f"{told}: left out, {self._in_a_row} in a row of at most {self.skip}")

    def _record(self, trainer: Trainer, seen: list[float], keys: list[str]) -> str:
        """Write down what was read, on rank 0, and say it in half a sentence, on all."""
        own = {"loss": seen[0], "grad_norm": seen[1], "keys": keys}
        ranks: list[Any] = [own]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            dist.all_gather_object(ranks, own)
        # Gradients are means over ranks already, and bad on all: the losses tell who it was.
        losses = [math.isfinite(rank["loss"]) for rank in ranks]
        first = losses.index(False) if False in losses else 0
        culprit, step = ranks[first], trainer.global_step + 1
        folder = run_folder(trainer)
        where = ""
        if folder is not None:
            path = folder / RECORD
            where = f" (all in {path})"
            if trainer.is_global_zero:
                plain = [{k: v if k == "keys" else str(v) for k, v in r.items()} for r in ranks]
                write_text(path, json.dumps({"step": step, "ranks": plain}, indent=1) + "\n")
        named = culprit["keys"][:_NAMED_AT_MOST]
        more = len(culprit["keys"]) - len(named)
        samples = ", ".join(named) + (f" and {more} more" if more > 0 else "")
        return (
            f"Step {step} has the loss {culprit['loss']:g} and gradients of norm "
            f"{culprit['grad_norm']:g} on rank {first}, from the samples {samples or '?'}{where}"
        )


def keys_of(batch: Any) -> list[str]:
    """Where the samples of a batch come from, of all its parts."""
    if not isinstance(batch, tuple):
        return []
    own = getattr(batch, "key", None)
    if own is not None:
        return [str(key) for key in own]
    return [key for part in batch for key in keys_of(part)]
