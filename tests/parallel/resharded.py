"""Run by test_resharding, alone and on ranks: save in one layout, go on in others."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.storage.checkpoint_io import SealedCheckpointIO
from tests.parallel.worlds import ROWS, TRAININGS
from tests.tasks.training import QUIET, loader

BEFORE, STEPS = 2, 4
NAME = "language, loss-free"
LAYOUTS = {1: [1], 2: [1, 2], 4: [1, 2, 4]}
"""By the number of ranks, over how many of them the experts are spread; 1 rank has no strategy."""


class Saving(Callback):
    """Saves in the middle."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_batch_end(self, trainer, *others) -> None:
        if trainer.global_step == BEFORE:
            trainer.save_checkpoint(self.path)


def trained(world: int, ep: int, rank: int, saved: Path | None, resumed: Path | None):
    """The whole weights after all steps."""
    training, share = TRAININGS[NAME], ROWS // world
    torch.manual_seed(0 if resumed is None else 1)  # where it goes on, its start does not matter
    task = training.task()
    batches = [
        training.part(training.batch(n), rank * share, (rank + 1) * share) for n in range(STEPS)
    ]
    trainer = Trainer(
        **QUIET | {"enable_checkpointing": False}, devices=world, max_steps=STEPS,
        strategy=FSDP2(expert_parallel=ep) if world > 1 else "auto",
        callbacks=[Saving(saved)] if saved else [], plugins=[SealedCheckpointIO()],
        use_distributed_sampler=False, gradient_clip_val=0.5,
    )  # fmt: skip
    left = batches if resumed is None else batches[BEFORE:]
    trainer.fit(task, loader(left), ckpt_path=resumed, weights_only=True)
    return get_model_state_dict(
        task, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )


if __name__ == "__main__":
    folder, what = Path(sys.argv[1]), sys.argv[2]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for ep in LAYOUTS[world]:
        own = f"{world} ranks, ep {ep}"
        if what == "save":
            found = {own: trained(world, ep, rank, folder / f"{own}.ckpt", None)}
        else:
            found = {
                f"{saved.stem} to {own}": trained(world, ep, rank, None, saved)
                for saved in sorted(folder.glob("*.ckpt"))
            }
        if rank == 0:
            for name, weights in found.items():
                plain = {key: w.contiguous() for key, w in weights.items()}
                save_file(plain, folder / f"{name}.safetensors")
