"""Branches: several modules in one place of a network, of which every token passes exactly one.

A sequence is always `[image ; text]`. `split`, the number of image tokens in front, says all there
is to say: 0 for a text, the whole length for an image, something between for a pair. It is an
argument of every call and never kept on a module, so forwards of images, texts and pairs may follow
each other in any order, be recomputed and be compiled.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mhmoe_mm.moe.routing import Kinds, Load

Parts = list[tuple[str, slice]]


@dataclass(frozen=True)
class Route:
    """Which branches a place has, and which part of the sequence passes each."""

    branches: tuple[str, ...]
    parts: Callable[[int, int], Parts]
    """From (split, sequence length) to (branch, part), in the order of the sequence."""


def _by_modality(split: int, seq: int) -> Parts:
    if split == 0:
        return [("text", slice(None))]
    if split == seq:
        return [("image", slice(None))]
    return [("image", slice(None, split)), ("text", slice(split, None))]


def _pairs_fused(split: int, seq: int) -> Parts:
    return [("fused", slice(None))] if 0 < split < seq else _by_modality(split, seq)


def _all_shared(split: int, seq: int) -> Parts:
    return [("shared", slice(None))]


BY_MODALITY = Route(("image", "text"), _by_modality)
"""Image tokens pass `image`, text tokens pass `text`."""
PAIRS_FUSED = Route(("image", "text", "fused"), _pairs_fused)
"""A pair passes `fused` as a whole; images and texts alone pass their own branch."""
ALL_SHARED = Route(("shared",), _all_shared)
"""Every token passes `shared`."""


class Multiway(nn.ModuleDict):
    """One map (linear, norm) per branch."""

    def __init__(self, route: Route, make: Callable[[], nn.Module]):
        super().__init__({branch: make() for branch in route.branches})
        self.route = route

    def forward(
        self, x: Float[Tensor, "batch seq dim"], split: int
    ) -> Float[Tensor, "batch seq out"]:
        parts = self.route.parts(split, x.shape[1])
        return _joined([self[branch](x[:, part]) for branch, part in parts])


class FFNInput(NamedTuple):
    """A sequence as a feed-forward net reads it, or a part of one."""

    x: Float[Tensor, "batch seq dim"]
    split: int
    """Number of image tokens in front; of a part, it means nothing."""
    keep: Bool[Tensor, "batch seq"] | None
    """False at padding, which no expert receives; None where there is none."""
    kinds: Kinds


class MultiwayFFN(nn.ModuleDict):
    """One feed-forward net per branch, dense or sparse; loads come back by branch."""

    def __init__(self, route: Route, make: Callable[[], nn.Module]):
        super().__init__({branch: make() for branch in route.branches})
        self.route = route

    def forward(
        self, sequences: list[FFNInput]
    ) -> tuple[list[Float[Tensor, "_ _ dim"]], dict[str, Load]]:
        """Every branch runs once, over its tokens of all the sequences."""
        routed = [self.route.parts(one.split, one.x.shape[1]) for one in sequences]
        by_branch: dict[str, list[FFNInput]] = {}
        for one, parts in zip(sequences, routed, strict=True):
            for branch, part in parts:
                by_branch.setdefault(branch, []).append(_part(one, part))
        answers: dict[str, Iterator[Tensor]] = {}
        loads = {}
        for branch, parts in by_branch.items():
            read = _one_after_the_other(parts)
            y, load = self[branch](read.x, read.keep, read.kinds)
            answers[branch] = iter(_apart(y, parts))
            if load is not None:
                loads[branch] = load
        return [_joined([next(answers[branch]) for branch, _ in parts]) for parts in routed], loads


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _part(one: FFNInput, part: slice) -> FFNInput:
    """These places of every row."""
    keep = None if one.keep is None else one.keep[:, part]
    kinds = Kinds(one.kinds.index[:, part], one.kinds.names)
    return FFNInput(one.x[:, part], one.split, keep, kinds)


def _one_after_the_other(parts: list[FFNInput]) -> FFNInput:
    """All rows of all parts as one row; a single part as it is."""
    if len(parts) == 1:
        return parts[0]
    x = torch.cat([part.x.flatten(0, 1) for part in parts])[None]
    index = torch.cat([part.kinds.index.flatten() for part in parts])[None]
    keep = None
    if any(part.keep is not None for part in parts):
        keep = torch.cat([_real(part).flatten() for part in parts])[None]
    return FFNInput(x, 0, keep, Kinds(index, parts[0].kinds.names))


def _real(part: FFNInput) -> Tensor:
    return torch.ones_like(part.kinds.index, dtype=torch.bool) if part.keep is None else part.keep


def _apart(y: Tensor, parts: list[FFNInput]) -> list[Tensor]:
    """The answers to the parts, each in the part's own shape."""
    if len(parts) == 1:
        return [y]
    sizes = [part.x.shape[0] * part.x.shape[1] for part in parts]
    pieces = y[0].split(sizes)
    return [piece.view(part.x.shape) for piece, part in zip(pieces, parts, strict=True)]
