"""Where a run keeps its results."""

from pathlib import Path

from lightning.pytorch import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the loggers, None without one or while debugging; asks all ranks, so call it on
    all.
    """
    folder = trainer.log_dir  # without loggers, Lightning gives the folder of all runs
    if not trainer.loggers or folder is None or getattr(trainer, "fast_dev_run", False):
        return None
    return Path(folder)
