"""When checkpoints are written, which of them are kept, and which one is the last."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from mhmoe_mm.callbacks.averaging import AveragedWeights
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
        options: those of Lightning's ModelCheckpoint.
    """

    def __init__(self, keep_last: int | None = None, **options: Any):
        if keep_last is not None and keep_last < 1:
            raise ValueError(f"keep_last is a number of checkpoints, 1 or more, got {keep_last}.")
        super().__init__(**options)
        self.keep_last = keep_last
        self._kept: list[str] = []
        """Those that were written here and not removed, oldest first."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.dirpath and trainer.is_global_zero:
            for line in recover(Path(self.dirpath)):
                rank_zero_info(line)

    def save_now(self, trainer: Trainer) -> str:
        """Write a checkpoint of this step, unless there is one; its path. All ranks call it."""
        if self._last_global_step_saved != trainer.global_step or not self._last_checkpoint_saved:
            candidates = self._monitor_candidates(trainer)
            if self.save_last and self.save_last != LINK:  # the newest is a file of its own
                super()._save_last_checkpoint(trainer, candidates)
            else:
                name = self._get_metric_interpolated_filepath_name(candidates, trainer)
                self._save_checkpoint(trainer, name)
        return self._last_checkpoint_saved

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self._check_space(trainer, Path(filepath))
        super()._save_checkpoint(trainer, filepath)
        if self.save_last != LINK and filepath == self.last_model_path:
            return
        if self.save_last == LINK:
            self.last_model_path = str(Path(filepath).with_name(LAST))
            if trainer.is_global_zero:
                point(Path(self.last_model_path), Path(filepath))
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
            self.save_now(trainer)  # where it is not among the best, it is the newest

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
            self.save_now(trainer)

    @override
    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """One that is no longer among the best stays while it is among the newest."""
        if filepath not in self._kept[-(self.keep_last or 1) :]:
            self._remove(trainer, filepath)

    def _remove(self, trainer: Trainer, path: str) -> None:
        self._kept = [kept for kept in self._kept if kept != path]
        trainer.strategy.remove_checkpoint(path)

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
