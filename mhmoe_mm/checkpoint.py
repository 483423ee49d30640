"""Weights of one training as the start of another: `init_from` of every task.

Read are Lightning checkpoints of this project, exports of them, and safetensors files, with our
names or those of the released BEiT-3 models. Nothing that a file says is run.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.released import MODELS, our_head_names, our_names, resize_positions
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.exported import is_exported, read_exported
from mhmoe_mm.storage.sealed import Damaged
from mhmoe_mm.storage.sharded import is_sharded

POSITIONS = "net.image_embedding.position"
_RELEASED = "beit3."
_NAMED_AT_MOST = 6


class Loaded(NamedTuple):
    """What became of the weights in a file and of those of the task."""

    path: str
    loaded: list[str]
    resized: list[str]
    """Image positions of another grid of patches, interpolated; among `loaded`."""
    missing: list[str]
    """Weights of the task that were not loaded: they stay as they are.

    Heads are loaded as a whole or not at all.
    """
    unexpected: list[str]
    """Weights in the file that found no place."""

    def lines(self) -> list[str]:
        """One line for each."""
        parts = dict.fromkeys(name.split(".")[0] for name in self.loaded)
        return [
            f"loaded from {self.path}: {len(self.loaded)} tensors of {', '.join(parts)}",
            f"resized: {_listed(self.resized)}",
            f"missing there, so left as they started: {_listed(self.missing)}",
            f"unexpected, so not loaded: {_listed(self.unexpected)}",
        ]


def check_path(path: str) -> None:
    """Refuse addresses: what they return is not under the user's control."""
    if re.match(r"\w+://", path):
        raise ValueError(f"Weights are not read from addresses: download {path} and name the file.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, a checkpoint or an export, on the CPU.

    Raises:
        ValueError: there is no such file, or it cannot be read, or not without running code.
    """
    check_path(str(path))
    path = Path(path)
    if is_exported(path):
        return read_exported(path)["state_dict"]
    if path.is_dir() and not is_sharded(path):
        raise ValueError(
            f"{path} is a folder, perhaps a sharded checkpoint: name one file, or the checkpoint's "
            "own folder."
        )
    if not path.exists():
        raise ValueError(
            f"There are no weights at {path} to start from: name another file, or set init_from to "
            "null where a checkpoint of the task is restored anyway."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = read_any(path, weights_alone=True)
    except Damaged as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{path} is neither a checkpoint nor safetensors, or not a whole one ({reason})."
        ) from error
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{path} holds no weights that can be read safely ({reason}): name another file."
        ) from error
    for key in ("state_dict", "model"):  # ours, the released models'
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            return {name: w for name, w in content[key].items() if isinstance(w, Tensor)}
    raise ValueError(f"{path} is no checkpoint of ours: it has no 'state_dict'.")


def load_weights(task: nn.Module, path: str | Path) -> Loaded:
    """Load a task's network from a file, and those of its heads that the file has as a whole.

    Image positions of another image size are interpolated. A file without the prefix `net.` holds a
    network alone.

    Raises:
        ValueError: as `read_weights`; or a weight of the network has another shape, or the file has
            none of them.
    """
    net = task.get_submodule("net")
    given, own = _as_ours(read_weights(path), net), task.state_dict()
    backbone = [name for name in own if name.startswith("net.") and name in given]
    resized = []
    if (
        isinstance(net, BEiT3)
        and POSITIONS in given
        and len(given[POSITIONS]) != len(own[POSITIONS])
    ):
        side = net.image_embedding.image_size // net.image_embedding.patch.stride[0]
        old, given[POSITIONS] = given[POSITIONS], resize_positions(given[POSITIONS], side)
        resized = [f"{POSITIONS} from {len(old)} to {len(given[POSITIONS])} rows"]
    differing = [name for name in backbone if given[name].shape != own[name].shape]
    if differing:
        first, more = differing[0], len(differing) - 1
        raise ValueError(
            f"{first} has the shape {tuple(given[first].shape)} in {path}, but "
            f"{tuple(own[first].shape)} here{f', and {more} more differ' if more else ''}: "
            "describe the same network, or start from another file."
        )
    fitting = {name: given[name] for name in (*backbone, *_whole_heads(given, own))}
    if not backbone:
        some = ", ".join(sorted(given)[:3]) or "nothing"
        raise ValueError(f"{path} has no weight of this network; it holds {some}, for example.")
    task.load_state_dict(fitting, strict=False)
    return Loaded(
        path=str(path),
        loaded=sorted(fitting),
        resized=resized,
        missing=sorted(own.keys() - fitting.keys()),
        unexpected=sorted(given.keys() - fitting.keys()),
    )


def _whole_heads(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Names outside the network of those modules that have the same weights on both sides."""
    parts = [
        {
            (name.split(".")[0], name, weight.shape)
            for name, weight in side.items()
            if not name.startswith("net.")
        }
        for side in (given, own)
    ]
    differing = {part for part, _, _ in parts[0] ^ parts[1]}
    return {name for part, name, _ in parts[0] & parts[1] if part not in differing}


def _as_ours(given: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """The same weights under the names of a task."""
    if isinstance(net, BEiT3) and any(name.startswith(_RELEASED) for name in given):
        backbone = our_names(len(net.blocks)).items()
        ours = {f"{_RELEASED}{theirs}": f"net.{name}" for theirs, name in backbone}
        for model in MODELS:
            if (heads := our_head_names(model)).keys() <= given.keys():
                ours |= heads
        return {ours.get(name, name): weight for name, weight in given.items()}
    if any(name.startswith("net.") for name in given):
        return dict(given)
    return {f"net.{name}": weight for name, weight in given.items()}


def _listed(names: list[str]) -> str:
    """`3 (a, b, c)`, cut where there are many."""
    if not names:
        return "none"
    more = len(names) - _NAMED_AT_MOST
    some = ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} ({some})"
