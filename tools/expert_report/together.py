"""Which experts meet in a token: between its heads, and between a layer and the next."""

from itertools import combinations, pairwise

import numpy as np

from mhmoe_mm.callbacks.routing_record import LayerRouting
from mhmoe_mm.callbacks.routing_tokens import RoutingChunk
from mhmoe_mm.moe.sparse_layers import Description
from tools.expert_report.contents import Pair, Together
from tools.expert_report.tally import information

LARGEST = 64
"""Experts up to which a page gets the whole matrix."""
STRONGEST = 12
RARE = 0.1
"""A pair is rare below this part of what an even spread over all pairs would give."""


class HeadsTogether:
    """Pairs of first choices of two heads of a token, in one layer."""

    def __init__(self, layer: Description):
        self.layer = layer
        heads, width = layer.num_heads, layer.num_experts + 1
        self.by_heads = {
            pair: np.zeros((width, width), np.int64) for pair in combinations(range(heads), 2)
        }

    def add(self, routing: LayerRouting) -> None:
        """Count one forward."""
        for (one, other), table in self.by_heads.items():
            count_pairs(table, routing.expert[:, one, 0], routing.expert[:, other, 0])

    def result(self) -> Together:
        """What was counted."""
        heads = self.layer.num_heads
        tables = {pair: table[1:, 1:] for pair, table in self.by_heads.items()}
        total = np.sum(list(tables.values()), axis=0)
        both = total + total.T
        same = np.ones((heads, heads))
        for (one, other), table in tables.items():
            share = np.trace(table) / max(table.sum(), 1)
            same[one, other] = same[other, one] = share
        load = both.sum(axis=1) / max(both.sum(), 1)
        found = together(self.layer.name, self.layer.name, both)
        return found._replace(
            same=float(np.trace(both) / max(both.sum(), 1)),
            random_same=float((load**2).sum()),
            same_by_heads=tuple(tuple(row) for row in same.round(6).tolist()),
        )


class LayersTogether:
    """Pairs of first choices of a head in one layer and in a later one."""

    def __init__(self, first: Description, second: Description):
        self.first, self.second = first, second
        self.table = np.zeros((first.num_experts + 1, second.num_experts + 1), np.int64)

    def add(self, one: LayerRouting, other: LayerRouting) -> None:
        """Count the tokens that passed both."""
        a, b = one.expert[:, :, 0], other.expert[:, :, 0]
        if not np.array_equal(one.rows, other.rows):
            _, in_one, in_other = np.intersect1d(
                one.rows, other.rows, assume_unique=True, return_indices=True
            )
            a, b = a[in_one], b[in_other]
        heads = min(a.shape[1], b.shape[1])
        count_pairs(self.table, a[:, :heads], b[:, :heads])

    def result(self) -> Together:
        """What was counted."""
        return together(self.first.name, self.second.name, self.table[1:, 1:])


class AllTogether:
    """Both, for every layer of a network."""

    def __init__(self, layers: list[Description]):
        self.heads = {layer.name: HeadsTogether(layer) for layer in layers if layer.num_heads > 1}
        self._layers = {layer.name: layer for layer in layers}
        self.pairs: dict[tuple[str, str], LayersTogether] = {}

    def add(self, chunk: RoutingChunk) -> None:
        """Count one forward."""
        for name, routing in chunk.layers.items():
            if name in self.heads:
                self.heads[name].add(routing)
        blocks: dict[int, list[str]] = {}
        for name in chunk.layers:
            blocks.setdefault(self._layers[name].block, []).append(name)
        ordered = [blocks[number] for number in sorted(blocks)]
        for names, following in pairwise(ordered):
            for pair in ((a, b) for a in names for b in following):
                one, other = (chunk.layers[name] for name in pair)
                if pair not in self.pairs:
                    self.pairs[pair] = LayersTogether(*(self._layers[name] for name in pair))
                self.pairs[pair].add(one, other)

    def results(self) -> tuple[tuple[Together, ...], tuple[Together, ...]]:
        """(between heads, between layers), pairs of layers that no token passes left out."""
        between = [pair.result() for pair in self.pairs.values()]
        return (
            tuple(heads.result() for heads in self.heads.values()),
            tuple(found for found in between if found.pairs),
        )


def count_pairs(table: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    """Add pairs of experts to a table (experts + 1, others + 1) whose first places are for none."""
    width = table.shape[1]
    place = (one.astype(np.int64) + 1) * width + (other + 1)
    table += np.bincount(place.ravel(), minlength=table.size).reshape(table.shape)


def together(layer: str, other: str, count: np.ndarray) -> Together:
    """A table of pairs with what is to be told of it."""
    total = int(count.sum())
    expected = np.outer(count.sum(axis=1), count.sum(axis=0)) / max(total, 1)
    lift = np.divide(count, expected, out=np.zeros_like(expected), where=expected > 0)
    common = count >= max(RARE * total / count.size, 5)
    if layer == other:
        common = np.triu(common)
    order = np.argsort(np.where(common, lift, 0), axis=None)[::-1][:STRONGEST]
    places = [divmod(int(place), count.shape[1]) for place in order]
    strongest = tuple(
        Pair(a, b, int(count[a, b]), float(lift[a, b])) for a, b in places if common[a, b]
    )
    small = max(count.shape) <= LARGEST
    return Together(
        layer=layer,
        other=other,
        pairs=total,
        count=tuple(tuple(row) for row in count.tolist()) if small else (),
        information=information(count),
        same=None,
        random_same=None,
        strongest=strongest,
        same_by_heads=(),
    )
