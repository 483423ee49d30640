"""Resuming: which checkpoint is meant, whether it may be read, and how it differs from what was
typed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from mhmoe_mm.callbacks.checkpoints import LAST
from mhmoe_mm.storage.checkpoint_io import read_plain
from mhmoe_mm.storage.exported import is_exported
from mhmoe_mm.storage.sealed import Damaged, verify_sealed
from mhmoe_mm.storage.sharded import verify_sharded
from mhmoe_mm.storage.whole import recover

RUNS = Path("runs")
"""The folder that runs are written into unless `trainer.default_root_dir` says otherwise."""


def find_checkpoint(asked: str, runs: Path, name: str, mend: bool = False) -> Path:
    """The checkpoint that `--ckpt_path` names: a file, a folder of shards, or `last` for the newest
    of this run that is whole (`mend` as there).

    Raises:
        ValueError: there is none, or it is damaged; or it is an address: what that returns is not
            under the user's control.
    """
    if re.match(r"\w+://", asked):
        raise ValueError(
            f"Checkpoints are not read from addresses: download {asked} and name the file."
        )
    if asked == "last":
        newest = newest_whole(runs / name, mend)
        if newest is None:
            raise ValueError(
                f"No last checkpoint of run '{name}': "
                f"there is no {runs / name}/version_*/checkpoints/last.ckpt that is whole."
            )
        return newest
    if asked in ("best", "hpc", "registry"):
        raise ValueError(
            f"Which checkpoint is '{asked}' only the process that trained knows: name the file."
        )
    if not Path(asked).exists():
        raise ValueError(f"No such checkpoint: {asked}.")
    if is_exported(Path(asked)):
        raise ValueError(
            f"{asked} is an exported model, weights without a training to restore: give it to "
            "`--model.init_from` instead of `--ckpt_path`."
        )
    return Path(asked)


def newest_whole(run: Path, mend: bool = False) -> Path | None:
    """The newest checkpoint of a run that is what was written, None without one; says which newer
    ones are not.

    With `mend` what killed processes left is put right first: for whoever goes on with this run,
    as nobody else writes there.
    """
    for folder in sorted(run.glob("version_*/checkpoints"), key=_version, reverse=True):
        for line in recover(folder) if mend else ():
            rank_zero_info(line)
        last = folder / LAST
        others = sorted(folder.glob("*.ckpt"), key=lambda path: path.lstat().st_mtime, reverse=True)
        for path in [last, *(path for path in others if not path.is_symlink())]:
            if not path.exists():
                continue
            try:
                verify(path)
                return path
            except Damaged as error:
                rank_zero_info(f"passed over: {error}")
    return None


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint with its seal or its manifest, and raise Damaged if it is another."""
    if checkpoint.is_dir():
        verify_sharded(checkpoint)
    else:
        verify_sealed(checkpoint)


def read_hyper_parameters(checkpoint: Path) -> dict[str, Any]:
    """What the checkpoint's task was made from; what is large is verified when it is loaded."""
    return read_plain(checkpoint).get("hyper_parameters", {})


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


def _version(folder: Path) -> int:
    """Of the folder of a run's checkpoints."""
    number = folder.parent.name.removeprefix("version_")
    return int(number) if number.isdigit() else -1
