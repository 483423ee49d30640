"""Weights of one training as the start of another: `init_from` of every task.

Read are Lightning checkpoints of this project, exports of them, and files of weights with our
names, those of the released BEiT-3 models, or those of timm's image transformers. Nothing that a
file says is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from mhmoe_mm.checkpoint.report import listed
from mhmoe_mm.checkpoint.vit import as_image_expert, is_vit
from mhmoe_mm.checkpoint.weights import read_weights
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.released import MODELS, our_head_names, our_names, resize_positions

POSITIONS = "net.image_embedding.position"
_RELEASED = "beit3."


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

    @property
    def as_they_were(self) -> set[str]:
        """Weights that are those in the file, resized ones left out."""
        return set(self.loaded) - {line.split()[0] for line in self.resized}

    def lines(self) -> list[str]:
        """One line for each."""
        parts = dict.fromkeys(name.split(".")[0] for name in self.loaded)
        return [
            f"loaded from {self.path}: {len(self.loaded)} tensors of {', '.join(parts)}",
            f"resized: {listed(self.resized)}",
            f"missing there, so left as they started: {listed(self.missing)}",
            f"unexpected, so not loaded: {listed(self.unexpected)}",
        ]


def load_weights(task: nn.Module, path: str | Path) -> Loaded:
    """Load a task's network from a file, and those of its heads that the file has as a whole.

    Raises:
        ValueError: as `read_weights` and `start_with`.
    """
    return start_with(task, read_weights(path), str(path))


def start_with(task: nn.Module, weights: Mapping[str, Tensor], path: str) -> Loaded:
    """Load a task's network from weights, and those of its heads that are there as a whole.

    Image positions of another image size are interpolated. Without the prefix `net.` these are
    weights of a network alone, or of an image transformer of timm (`vit.py`).

    Args:
        task: with a network `net`.
        weights: of a state dict.
        path: where they come from, for the report.

    Raises:
        ValueError: a weight of the network has another shape, or there is none of them.
    """
    net = task.get_submodule("net")
    given, own = _as_ours(weights, net, path), task.state_dict()
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
        path=path,
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


def _as_ours(given: Mapping[str, Tensor], net: nn.Module, path: str) -> dict[str, Tensor]:
    """The same weights under the names of a task."""
    if isinstance(net, BEiT3) and is_vit(given):
        return as_image_expert(given, net, path)
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
