"""Image patches: how many experts read them, and whether more where there is more to see."""

import numpy as np

from mhmoe_mm.callbacks.routing_tokens import EDGE_FROM, RoutingChunk
from mhmoe_mm.moe.sparse_layers import Description
from tools.expert_report.contents import PatchStep
from tools.expert_report.diversity import random_distinct_diversity, random_diversity

KEPT = 400_000
"""Patches that are kept at most; of more, a random part."""
TENTHS = 10


class PatchSpread:
    """Collects the diversity and the energy of patches that the network saw as they were."""

    def __init__(self, layers: list[Description]):
        self.layers = {layer.name: layer for layer in layers}
        self._diversity: list[np.ndarray] = []
        self._energy: list[np.ndarray] = []
        self._share, self._size = 1.0, 0
        self._random = np.random.default_rng(0)
        self._shapes: dict[str, tuple[int, int]] = {}
        """Of every layer that patches passed, heads and choices."""

    def add(self, chunk: RoutingChunk, diversity: np.ndarray) -> None:
        """Add one forward; `diversity` (tokens) as `mean_diversity` gives it."""
        token = chunk.tokens
        seen = (token.patch >= 0) & token.clean & np.isfinite(diversity)
        if self._share < 1:
            seen &= self._random.random(len(seen)) < self._share
        if not seen.any():
            return
        for name, routing in chunk.layers.items():
            if seen[routing.rows].any():
                self._shapes[name] = routing.expert.shape[1:]
        self._diversity.append(diversity[seen])
        self._energy.append(token.energy[seen])
        self._size += int(seen.sum())
        while self._size > KEPT:
            self._thin()

    def _thin(self) -> None:
        self._share /= 2
        kept = self._random.random(self._size) < 0.5
        self._diversity = [np.concatenate(self._diversity)[kept]]
        self._energy = [np.concatenate(self._energy)[kept]]
        self._size = int(kept.sum())

    def random(self, distinct: bool) -> float:
        """The diversity that random routing would give, mean over layers; `distinct` where the
        choices of a sub-token are different experts.
        """
        shapes = [(self.layers[name].num_experts, *shape) for name, shape in self._shapes.items()]
        if distinct:
            return float(np.mean([random_distinct_diversity(*shape) for shape in shapes]))
        return float(np.mean([random_diversity(e, heads * k) for e, heads, k in shapes]))

    def result(self, step: int) -> PatchStep | None:
        """What was collected, of this step; None without patches."""
        if not self._size:
            return None
        diversity, energy = np.concatenate(self._diversity), np.concatenate(self._energy)
        edge = energy >= EDGE_FROM
        parts = np.array_split(diversity[np.argsort(energy, kind="stable")], TENTHS)
        return PatchStep(
            step=step,
            mean=float(diversity.mean()),
            edge=float(diversity[edge].mean()) if edge.any() else None,
            flat=float(diversity[~edge].mean()) if not edge.all() else None,
            correlation=rank_correlation(diversity, energy),
            by_energy=tuple(float(part.mean()) for part in parts if len(part)),
        )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's correlation, equal values sharing their mean rank; None where one is constant."""
    a, b = _ranks(one), _ranks(other)
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
