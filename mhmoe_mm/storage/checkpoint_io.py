"""How Lightning writes and reads checkpoints here: sealed files, and folders of shards."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities.types import _PATH
from torch import nn
from torch.optim import Optimizer

from mhmoe_mm.storage.background import Writer, snapshot
from mhmoe_mm.storage.sealed import read_sealed, save_sealed
from mhmoe_mm.storage.sharded import is_sharded, read_rest, read_whole, verify_sharded

OPTIMIZER = "optimizer_{}"
"""The name of an optimizer's state among the shards, by its number."""
TRAINING = "current_model_state"
"""The weights that train on, where `state_dict` holds their average."""


class SealedCheckpointIO(CheckpointIO):
    """Writes sealed files; reads those, files without a seal, and the shards of several ranks."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        """Now, or, where `storage_options` are a Writer, by that: values as they are now."""
        if not isinstance(storage_options, Writer | None):
            raise ValueError("Checkpoints are files here: there are no storage_options.")
        if storage_options is None:
            _save(checkpoint, Path(path))
        else:
            held = snapshot(checkpoint)
            storage_options.add(lambda: _save(held, Path(path)))

    def load_checkpoint(
        self, path: _PATH, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """On the CPU, without running code, whatever is asked for."""
        return read_any(Path(path))

    def remove_checkpoint(self, path: _PATH) -> None:
        place = Path(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def _save(checkpoint: dict[str, Any], place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if is_sharded(place):
        shutil.rmtree(place)
    save_sealed(checkpoint, place)


def read_any(path: Path, weights_alone: bool = False) -> dict[str, Any]:
    """All that a checkpoint holds, verified, as a single file would have it.

    Args:
        path: of a sealed or another file, or the folder of shards.
        weights_alone: leave the state of optimizers unread: out of shards, mapped in a file.

    Raises:
        Damaged: it is not what was written.
        ValueError: it is no checkpoint, or cannot be read safely.
    """
    if not path.is_dir():
        return read_sealed(path, mmap=weights_alone)
    verify_sharded(path)
    shards = read_whole(path, "state_dict." if weights_alone else "")
    content = read_rest(path) | {"state_dict": shards["state_dict"]}
    states = []
    while (name := OPTIMIZER.format(len(states))) in shards:
        states.append(numbered(shards[name]))
    if TRAINING in shards:
        content[TRAINING] = shards[TRAINING]
    return content | {"optimizer_states": states}


def read_plain(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, its large tensors neither read nor verified: for a look at the rest.

    Raises:
        ValueError: it is no checkpoint, or cannot be read safely.
    """
    return read_rest(path) if path.is_dir() else read_sealed(path, verify=False, mmap=True)


def numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an optimizer by the numbers of parameters, where shards have their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _renamed(state, {name: number for number, name in enumerate(names)})


def named(state: Mapping[str, Any], module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The reverse: numbers follow the groups of the optimizer, not the order of the module."""
    names = {id(param): name for name, param in module.named_parameters()}
    ordered = [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
    return _renamed(state, dict(enumerate(ordered)))


def _renamed(state: Mapping[str, Any], new: Mapping[Any, Any]) -> dict[str, Any]:
    groups = state["param_groups"]
    return {
        "state": {new[old]: value for old, value in state["state"].items()},
        "param_groups": [group | {"params": [new[o] for o in group["params"]]} for group in groups],
    }
