"""Run by test_background on ranks: checkpoints written at once, and beside a training."""

import os
import sys
import threading
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy

from mhmoe_mm.callbacks.averaging import AveragedWeights
from mhmoe_mm.callbacks.checkpoints import Checkpoints
from mhmoe_mm.parallel import strategy
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.storage import checkpoint_io
from mhmoe_mm.storage.checkpoint_io import SealedCheckpointIO
from tests.parallel.worlds import ROWS, TRAININGS
from tests.tasks.training import QUIET, loader

EVERY, STEPS = 2, 5
NAME = "language, loss-free"
LAYOUTS = {
    "shards": lambda: FSDP2(),
    "shards, ep 2": lambda: FSDP2(expert_parallel=2),
    "one file": lambda: FSDP2(sharded_checkpoints=False),
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
}


class Held(Callback):
    """Lets nothing be written that began at step 2 until step 3 is done."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def late(self, write):
        def writing(*args, **kwargs):
            assert self.free.wait(60)
            return write(*args, **kwargs)

        return writing

    def on_train_batch_end(self, trainer: Trainer, *others) -> None:
        if trainer.global_step == EVERY + 1:
            self.free.set()


def train(layout: str, folder: Path, rank: int, world: int, held: Held | None) -> None:
    training, share = TRAININGS[NAME], ROWS // world
    torch.manual_seed(0)
    batches = [
        training.part(training.batch(n), rank * share, (rank + 1) * share) for n in range(STEPS)
    ]
    keeper = Checkpoints(
        dirpath=str(folder), filename="{step}", every_n_train_steps=EVERY, save_top_k=-1,
        save_last="link", background=held is not None,
    )  # fmt: skip
    callbacks = [keeper, AveragedWeights(0.5), *([held] if held else [])]
    trainer = Trainer(
        **QUIET | {"enable_checkpointing": True}, devices=world, max_steps=STEPS,
        strategy=LAYOUTS[layout](), callbacks=callbacks, plugins=[SealedCheckpointIO()],
        use_distributed_sampler=False, gradient_clip_val=0.5,
    )  # fmt: skip
    trainer.fit(training.task(), loader(batches))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    at_once = strategy.save_sharded, checkpoint_io.save_sealed
    for layout in LAYOUTS:
        train(layout, folder / layout / "at once", rank, world, None)
        held = Held()
        strategy.save_sharded, checkpoint_io.save_sealed = map(held.late, at_once)
        train(layout, folder / layout / "beside", rank, world, held)
        strategy.save_sharded, checkpoint_io.save_sealed = at_once
