"""Resuming: which checkpoint is meant, whether it may be read, and how it differs from what was
typed."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

RUNS = Path("runs")
"""The folder that runs are written into unless `trainer.default_root_dir` says otherwise."""


def find_checkpoint(asked: str, runs: Path, name: str) -> Path:
    """The checkpoint that `--ckpt_path` names: a file, a folder of shards, or `last` for the newest
    of this run.

    Raises ValueError if there is none, and for addresses: what they return is not under the user's
    control.
    """
    if re.match(r"\w+://", asked):
        raise ValueError(
            f"Checkpoints are not read from addresses: download {asked} and name the file."
        )
    if asked == "last":
        found = sorted((runs / name).glob("version_*/checkpoints/last.ckpt"), key=_version)
        if not found:
            raise ValueError(
                f"No last checkpoint of run '{name}': "
                f"there is no {runs / name}/version_*/checkpoints/last.ckpt."
            )
        return found[-1]
    if asked in ("best", "hpc", "registry"):
        raise ValueError(
            f"Which checkpoint is '{asked}' only the process that trained knows: name the file."
        )
    if not Path(asked).exists():
        raise ValueError(f"No such checkpoint: {asked}.")
    return Path(asked)


def read_hyper_parameters(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint's task was made from."""
    return read_checkpoint(checkpoint).get("hyper_parameters", {})


def read_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds; tensors are mapped, not read; no code is run.

    Raises:
        ValueError: the file is no checkpoint, or not a whole one, or cannot be read safely.
    """
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{file} is not a checkpoint, or not a whole one.")
    try:
        content = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a checkpoint.")
    return content


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The hyper-parameters that differ, one line each: key, value of the checkpoint, value of the
    command line."""
    old, new = dict(flat(there)), dict(flat(here))
    return [
        f"{key}: {_shown(old, key)} in the checkpoint, {_shown(new, key)} here"
        for key in sorted(old.keys() | new.keys())
        if _shown(old, key) != _shown(new, key)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested keys joined by dots, without `init_args`."""
    for key, value in tree.items():
        name = prefix if key == "init_args" else f"{prefix}{'.' if prefix else ''}{key}"
        if isinstance(value, Mapping):
            yield from flat(value, name)
        else:
            yield name, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "nothing"


def _version(checkpoint: Path) -> int:
    number = checkpoint.parent.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
