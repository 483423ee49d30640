"""A callback that keeps the raw routing of evaluations: which experts read every sub-token."""

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mhmoe_mm.callbacks.routing_file import RoutingMeta, RoutingWriter, pieces_of
from mhmoe_mm.callbacks.routing_record import RoutingRecorder
from mhmoe_mm.callbacks.routing_table import RoutingTable
from mhmoe_mm.callbacks.routing_tokens import chunks
from mhmoe_mm.callbacks.run_folder import run_folder
from mhmoe_mm.inputs.spelling import Spelling, spelling_of
from mhmoe_mm.moe.sparse_layers import described
from mhmoe_mm.storage.checkpoint_io import read_plain
from mhmoe_mm.tasks.base import Task


class RoutingDump(Callback):
    """Writes the routing of every validation and test into the run's folder.

    `<log_dir>/routing/val-00000500/rank-0.npz`, a file per rank, each with what that rank read;
    `python -m tools.expert_report <log_dir>/routing/val-00000500` reports on all of them together.
    What counts in the loads of a step counts here too. Recorded blocks run uncompiled.

    Args:
        format: `npz`, which reports are made of, or `parquet`, a table (needs pyarrow).
        every_n_validations: validations from one that is recorded to the next, the first included;
            a validation or test on its own is always recorded.
        batches: of each rank, at most; None for all of them.
    """

    def __init__(
        self,
        format: Literal["npz", "parquet"] = "npz",
        every_n_validations: int = 1,
        batches: int | None = None,
    ):
        if every_n_validations < 1 or (batches is not None and batches < 1):
            raise ValueError(
                "every_n_validations and batches are numbers, 1 or more, got "
                f"{every_n_validations} and {batches}."
            )
        self.format, self.every, self.batches = format, every_n_validations, batches
        self._folder: Path | None = None
        self._count = self._seen = 0
        self._recorder: RoutingRecorder | None = None
        self._writer: RoutingWriter | RoutingTable | None = None
        self._spelling: Spelling | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = run_folder(trainer)  # asks every rank

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._count += 1
        if trainer.state.fn != "fit" or (self._count - 1) % self.every == 0:
            self._begin(trainer, pl_module, "val")

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer, pl_module, "test")

    def _begin(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._folder is None or not isinstance(pl_module, Task):
            return
        layers = described(pl_module.net)
        if not layers:
            return
        if self._spelling is None:
            self._spelling = spelling_of(getattr(trainer, "datamodule", None))
        name = (
            self._folder.parent.name if self._folder.name[:8] == "version_" else self._folder.name
        )
        step = _step(trainer)
        place = self._folder / "routing" / f"{stage}-{step:08d}"
        meta = RoutingMeta(
            name,
            type(pl_module).__name__,
            step,
            f"split {stage}",
            tuple(layers),
            pieces_of(self._spelling),
        )
        kind = RoutingWriter if self.format == "npz" else RoutingTable
        self._writer = kind(place / f"rank-{trainer.global_rank}.{self.format}", meta)
        self._recorder = RoutingRecorder(pl_module.net)
        self._recorder.start()
        self._seen = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._recorder is None or self._writer is None:
            return
        forwards = self._recorder.take()
        # A step without loads, which only fills this rank up, does not count.
        if not isinstance(outputs, dict) or not outputs.get("loads"):
            return
        assert isinstance(pl_module, Task)
        for chunk in chunks(forwards, batch, pl_module, self._spelling):
            self._writer.add(chunk)
        self._seen += 1
        if self._seen == self.batches:
            self._end()

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    on_test_epoch_end = on_validation_epoch_end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._recorder is not None and self._writer is not None:
            self._recorder.stop()
            self._writer.discard()
        self._recorder = self._writer = None

    def _end(self) -> None:
        if self._recorder is not None and self._writer is not None:
            self._recorder.stop()
            self._writer.close()
        self._recorder = self._writer = None


def _step(trainer: Trainer) -> int:
    """Steps that the network was trained. An evaluation on its own does not count on from its
    checkpoint, so that is asked.
    """
    if trainer.state.fn == "fit" or not trainer.ckpt_path:
        return trainer.global_step
    return int(read_plain(Path(trainer.ckpt_path)).get("global_step", 0))
