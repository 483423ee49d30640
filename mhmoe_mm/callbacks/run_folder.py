"""Where a run keeps its results, and how they get there: whole or not at all."""

import os
from collections.abc import Callable
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


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file in its place once it is complete; `write` makes it, under another name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    write(part)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """The same of a text."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
