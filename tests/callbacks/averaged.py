"""Run by test_averaging, on ranks: average, save in one layout, go on in others."""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mhmoe_mm.callbacks.averaging import AveragedWeights
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.storage.checkpoint_io import SealedCheckpointIO
from tests.parallel.resharded import Saving
from tests.parallel.worlds import LAYOUTS as WORLDS
from tests.parallel.worlds import ROWS, TRAININGS
from tests.tasks.training import QUIET, loader

DECAY, BEFORE, STEPS = 0.5, 2, 4
TRAINING = TRAININGS["language, loss-free"]


class Layout(NamedTuple):
    world: int
    ep: int
    sharded: bool = True
    """Checkpoints are folders."""
    fsdp: bool = True

    def __str__(self) -> str:
        how = f"fsdp, ep {self.ep}" if self.fsdp else "whole"
        return f"{self.world} ranks, {how}, {'shards' if self.sharded else 'file'}"

    def strategy(self) -> Any:
        if self.fsdp:
            return FSDP2(expert_parallel=self.ep, sharded_checkpoints=self.sharded)
        return "auto" if self.world == 1 else WORLDS["ddp"].strategy()


ALONE = Layout(1, 1, sharded=False, fsdp=False)
LAYOUTS = [
    ALONE,
    Layout(1, 1),
    Layout(2, 1, sharded=False, fsdp=False),
    Layout(2, 1),
    Layout(2, 2),
    Layout(2, 2, sharded=False),
]


class Noted(Callback):
    """The loss of every validation, by step."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_validation_end(self, trainer, pl_module) -> None:
        self.seen[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


def trained(
    layout: Layout, rank: int, saved: Path | None, resumed: Path | None, decay: float | None = DECAY
) -> tuple[dict[str, torch.Tensor], dict[int, float]]:
    """The whole weights at the end, and the losses of validations."""
    share = ROWS // layout.world
    torch.manual_seed(0 if resumed is None else 1)  # where it goes on, its start does not matter
    task, noted = TRAINING.task(), Noted()
    own = [TRAINING.part(TRAINING.batch(n), rank * share, rank * share + share) for n in range(5)]
    averaging = [] if decay is None else [AveragedWeights(decay)]
    trainer = Trainer(
        **QUIET | {"enable_checkpointing": False}, devices=layout.world, max_steps=STEPS,
        strategy=layout.strategy(),
        callbacks=[*([Saving(saved)] if saved else []), *averaging, noted],
        plugins=[SealedCheckpointIO()], use_distributed_sampler=False, gradient_clip_val=0.5,
        val_check_interval=1, check_val_every_n_epoch=None, num_sanity_val_steps=0,
    )  # fmt: skip
    left = own[:STEPS] if resumed is None else own[BEFORE:STEPS]
    trainer.fit(task, loader(left), loader(own[STEPS:]), ckpt_path=resumed, weights_only=True)
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(task, options=whole), noted.seen


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for own in (layout for layout in LAYOUTS if layout.world == world):
        saved = sorted(folder.glob("*.ckpt"))
        if what == "save":
            found = {str(own): trained(own, rank, folder / f"{own}.ckpt", None)}
        else:
            found = {f"{path.stem} to {own}": trained(own, rank, None, path) for path in saved}
        if rank == 0:
            for name, (weights, losses) in found.items():
                plain = {key: w.contiguous() for key, w in weights.items()}
                save_file(plain, folder / f"{name}.safetensors", {"losses": json.dumps(losses)})
