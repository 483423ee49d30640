"""When checkpoints are written, which of them are kept, and which one is the last."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import proxy

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from mhmoe_mm.callbacks.averaging import AveragedWeights
from mhmoe_mm.storage.background import Writer
from mhmoe_mm.storage.whole import check_space, point, recover

LAST = f"{ModelCheckpoint.CHECKPOINT_NAME_LAST}{ModelCheckpoint.FILE_EXTENSION}"
LINK = "link"
"""Of `save_last`: a link to the newest that was written. True: the newest state, in a file."""
ALL = -1
"""Of `save_top_k`: nothing is removed."""
MARGIN = 1.1
"""What a checkpoint is taken to need, times its size."""


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint, with a `last.ckpt` that is whole at any moment.

    A checkpoint gets its name when all of it is on the disk. Only then does `last.ckpt` point to
    it, and only then are older ones removed. What a killed run left is put right at the start.
    Before it writes, it looks for room.

    Args:
        keep_last: how many of the newest are kept besides the best `save_top_k` by `monitor`, so
            that a run goes on from its newest state. None: with a `monitor` only the best are
            written, and without one the newest alone is kept, as by Lightning.
        background: copy the state to the host's memory and write it while training goes on; the
            next checkpoint, and the end of the run, wait for it. One that cannot be written is
            told at once, and ends the run where it would wait.
        options: those of Lightning's ModelCheckpoint.
    """

    def __init__(self, keep_last: int | None = None, background: bool = False, **options: Any):
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last is a number of checkpoints, 1 or more, got {keep_last}.")
        super().__init__(**options)
        self.keep_last, self.background = keep_last, background
        self._writer: Writer | None = None
        self._begun: int | None = None
        """The step of a checkpoint that is being written, until it was waited for."""
        self._told = False
        """Whether it was said already that it cannot be written."""
        self._kept: list[str] = []
        """Those that were written here and not removed, oldest first."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.background and self._writer is None:
            self._writer = Writer()
        if self.dirpath and trainer.is_global_zero:
            for line in recover(Path(self.dirpath)):
                rank_zero_info(line)

    def save_now(self, trainer: Trainer) -> str:
        """Write a checkpoint of this step, unless there is one; its path. All ranks call it, and
        come back when it is there.
        """
        self._save_unless_saved(trainer)
        self.finish(trainer)
        return self._last_checkpoint_saved

    def finish(self, trainer: Trainer) -> None:
        """Wait for a checkpoint that is being written. All ranks call it.

        Raises:
            OSError: it cannot be written; raised on all, and `last` is the one before it.
        """
        if self._begun is None or self._writer is None:
            return
        step, error = self._begun, self._writer.wait()
        self._begun, self._told = None, False
        problem = trainer.strategy.broadcast(None if error is None else str(error))
        if problem is not None or error is not None:
            raise OSError(f"Step {step} is not saved: {problem or error}") from error
        self._tell_loggers(trainer)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._warn_of_error()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self.finish(trainer)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """What is being written is completed; where that fails too, the exception is the news."""
        super().on_exception(trainer, pl_module, exception)
        if self._writer is not None:
            self._warn_of(self._writer.wait())
        self._close()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._begun = None

    def _save_unless_saved(self, trainer: Trainer) -> None:
        if self._last_global_step_saved != trainer.global_step or not self._last_checkpoint_saved:
            candidates = self._monitor_candidates(trainer)
            if self.save_last and self.save_last != LINK:  # the newest is a file of its own
                super()._save_last_checkpoint(trainer, candidates)
            else:
                name = self._get_metric_interpolated_filepath_name(candidates, trainer)
                self._save_checkpoint(trainer, name)

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.finish(trainer)
        self._check_space(trainer, Path(filepath))
        trainer.save_checkpoint(filepath, self.save_weights_only, self._writer)
        self._last_global_step_saved = trainer.global_step
        self._last_checkpoint_saved = filepath
        if self._writer is None:
            self._tell_loggers(trainer)
        else:
            self._begun = trainer.global_step
        if self.save_last != LINK and filepath == self.last_model_path:
            return
        if self.save_last == LINK:
            self.last_model_path = str(Path(filepath).with_name(LAST))
            if trainer.is_global_zero:
                last = Path(self.last_model_path)
                self._when_written(lambda: point(last, Path(filepath)))
        self._kept = [path for path in self._kept if path != filepath] + [filepath]
        if self.keep_last is None or self.save_top_k == ALL:
            return
        best = self.best_k_models if self.monitor else ()
        for path in self._kept[: -self.keep_last]:
            if path not in best and self._should_remove_checkpoint(trainer, path, filepath):
                self._remove(trainer, path)

    @override
    def _save_monitor_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        super()._save_monitor_checkpoint(trainer, monitor_candidates)
        if self.keep_last is not None and self.save_last == LINK:
            self._save_unless_saved(trainer)  # where it is not among the best, it is the newest

    @override
    def _save_last_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        """A link was set when its checkpoint was written. Where nothing else asks for one (no
        validation, or `save_top_k` 0), this is one.
        """
        if self.save_last != LINK:
            super()._save_last_checkpoint(trainer, monitor_candidates)
        elif self.save_top_k == 0 or not self._last_checkpoint_saved:
            self._save_unless_saved(trainer)

    @override
    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """One that is no longer among the best stays while it is among the newest."""
        if filepath not in self._kept[-(self.keep_last or 1) :]:
            self._remove(trainer, filepath)

    def _remove(self, trainer: Trainer, path: str) -> None:
        self._kept = [kept for kept in self._kept if kept != path]
        self._when_written(lambda: trainer.strategy.remove_checkpoint(path))

    def _when_written(self, work: Callable[[], object]) -> None:
        """Now, or by the thread that writes, and only where the checkpoint came into being."""
        if self._writer is None:
            work()
        else:
            self._writer.add(work)

    def _warn_of_error(self) -> None:
        if self._begun is not None and self._writer is not None:
            self._warn_of(self._writer.error)

    def _warn_of(self, error: BaseException | None) -> None:
        if error is not None and not self._told:
            rank_zero_warn(
                f"Step {self._begun} is not saved: {error}. The run ends at its next checkpoint."
            )
            self._told = True

    def _tell_loggers(self, trainer: Trainer) -> None:
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(proxy(self))

    def _check_space(self, trainer: Trainer, path: Path) -> None:
        """Refuse on all ranks together; `last` and what is there stay as they are."""
        problem = None
        if trainer.is_global_zero:
            known = [Path(kept) for kept in self._kept if Path(kept).exists()]
            needed = _size(known[-1]) if known else _expected(trainer)
            folder = next(parent for parent in path.parents if parent.exists())
            try:
                check_space(folder, int(MARGIN * needed))
            except OSError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem:
            raise OSError(f"Step {trainer.global_step} is not saved: {problem}")

    @override
    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"kept": self._kept}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.dirpath == state_dict.get("dirpath"):
            self._kept = [path for path in state_dict.get("kept", []) if Path(path).exists()]


def _size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _expected(trainer: Trainer) -> int:
    """Bytes of a first checkpoint: the weights, twice as many of an optimizer such as AdamW, and
    once more where their average is kept beside them.
    """
    weights = sum(p.numel() * p.element_size() for p in trainer.lightning_module.parameters())
    averaged = any(isinstance(known, AveragedWeights) for known in trainer.callbacks)  # pyright: ignore
    return (4 if averaged else 3) * weights
