"""Averaged weights (EMA), however the network is spread over ranks.

Lightning's `WeightAveraging` copies the module, which FSDP2 does not allow. Here the average is one
more tensor beside every weight, of that part of it which the rank holds.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from mhmoe_mm.parallel.norms import local
from mhmoe_mm.storage.checkpoint_io import TRAINING


class AveragedWeights(Callback):
    """An exponential moving average of the weights, which is validated, and which a training ends
    with.

    The average begins as the weights after the first step that counts. Buffers are taken as they
    are: the balance bias of a router is its own. A step that changed no weight, because the guard
    or the scaler of losses left it out, does not count. A checkpoint's `state_dict` holds the
    average and `current_model_state` the weights that train on, the names that Lightning's callback
    uses.

    Args:
        decay: the share of the average that a step keeps.
        start_step: the first step whose weights count; until then the weights themselves are
            validated and saved.
        every_n_steps: the weights of every n-th step count.
    """

    def __init__(self, decay: float = 0.9999, start_step: int = 1, every_n_steps: int = 1):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(
                f"decay is what a step keeps of the average, from 0 to 1, got {decay}."
            )
        if start_step < 1 or every_n_steps < 1:
            raise ValueError(
                f"start_step={start_step} and every_n_steps={every_n_steps} are numbers of steps, "
                "1 or more."
            )
        self.decay, self.start_step, self.every_n_steps = decay, start_step, every_n_steps
        self._other: dict[nn.Parameter, Tensor] = {}
        """By weight, what the network does not hold now; empty until the average begins."""
        self._in_use = False
        """Whether the network holds the average, and `_other` the weights that train on."""
        self._stepped = False
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == TrainerFn.FITTING:
            self._other, self._in_use, self._stepped = {}, False, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        coarse = [name for name, p in pl_module.named_parameters() if p.dtype.itemsize < 4]
        if coarse:
            raise ValueError(
                f"{coarse[0]} has 16 bits, in which an average does not move: average weights in "
                "float32, with precision bf16-mixed or 32-true."
            )
        self._hooks = [o.register_step_post_hook(self._note_step) for o in trainer.optimizers]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._follow(trainer, pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._follow(trainer, pl_module)
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer, pl_module)
        self._swap(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._follow(trainer, pl_module)
        if not self._other:
            return
        _gather_nothing(pl_module)
        held = checkpoint["state_dict"]
        named = pl_module.named_parameters(remove_duplicate=False)
        other = held | {name: self._other[p] for name, p in named if p in self._other}
        average, training = (held, other) if self._in_use else (other, held)
        checkpoint |= {"state_dict": average, TRAINING: training}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The network has the average already, which its `state_dict` was."""
        if trainer.state.fn != TrainerFn.FITTING or TRAINING not in checkpoint:
            return
        self._begin(pl_module)
        pl_module.load_state_dict(checkpoint[TRAINING], strict=pl_module.strict_loading)

    def _note_step(self, optimizer: Optimizer, *_: Any) -> None:
        """Called when the optimizer stepped; without any gradient it changed nothing."""
        params = (param for group in optimizer.param_groups for param in group["params"])
        self._stepped = self._stepped or any(param.grad is not None for param in params)

    @torch.no_grad()
    def _follow(self, trainer: Trainer, module: LightningModule) -> None:
        """Take in the step that was just made, once, whichever hook asks first."""
        stepped, self._stepped = self._stepped, False
        step = trainer.global_step
        if not stepped or step < self.start_step or step % self.every_n_steps:
            return
        if not self._other:
            self._begin(module)
            return
        _gather_nothing(module)
        average = [local(tensor) for tensor in self._other.values()]
        torch._foreach_lerp_(average, [local(param) for param in self._other], 1 - self.decay)

    @torch.no_grad()
    def _begin(self, module: LightningModule) -> None:
        _gather_nothing(module)
        params = (param for param in module.parameters() if param.requires_grad)
        self._other = {param: param.detach().clone() for param in params}

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        if not self._other:
            return
        _gather_nothing(module)
        for param, other in self._other.items():
            here, there = local(param), local(other)
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)
        self._in_use = not self._in_use


def _gather_nothing(module: nn.Module) -> None:
    """Let go of whole weights that FSDP still holds: they would hide a change of the shares."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
