"""Branches: several modules in one place of a network, of which every token passes exactly one.

A sequence is always `[image ; text]`. `split`, the number of image tokens in front, says all there
is to say: 0 for a text, the whole length for an image, something between for a pair. It is an
argument of every call and never kept on a module, so forwards of images, texts and pairs may follow
each other in any order, be recomputed and be compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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


class MultiwayFFN(nn.ModuleDict):
    """One feed-forward net per branch, dense or sparse; loads come back by branch."""

    def __init__(self, route: Route, make: Callable[[], nn.Module]):
        super().__init__({branch: make() for branch in route.branches})
        self.route = route

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        split: int,
        keep: Bool[Tensor, "batch seq"] | None,
        kinds: Kinds,
    ) -> tuple[Float[Tensor, "batch seq dim"], dict[str, Load]]:
        outputs, loads = [], {}
        for branch, part in self.route.parts(split, x.shape[1]):
            real = None if keep is None else keep[:, part]
            y, load = self[branch](x[:, part], real, Kinds(kinds.index[:, part], kinds.names))
            outputs.append(y)
            if load is not None:
                loads[branch] = load
        return _joined(outputs), loads
