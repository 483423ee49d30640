"""Counts of assignments by layer, cell, expert and choice, and what follows from them alone."""

import math
from collections.abc import Mapping

import numpy as np
import torch

from mhmoe_mm.callbacks.expert_stats import KindStats, Usage, kind_stats
from mhmoe_mm.callbacks.routing_record import LayerRouting
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.moe.sparse_layers import Description
from tools.expert_report.cells import DIMENSIONS, GROUPS, SAMPLE, CellIndex, Cells
from tools.expert_report.contents import Choice, Counts, Gate, Layer, Specialisation, Use

ALL = "all"
_FIFTH = 0.2


class LayerTally:
    """The counts of one layer.

    Args:
        layer: what it is.
    """

    def __init__(self, layer: Description):
        self.layer = layer
        self.experts = layer.num_experts
        self.choices = 0
        self.by_choice: list[np.ndarray] = []
        """By choice: int64 (cells experts + 1); the first column counts those that went nowhere."""
        self.tokens = np.zeros(0, dtype=np.int64)
        """(cells) tokens, not sub-tokens."""
        self.random = np.zeros((GROUPS * GROUPS, self.experts + 1), dtype=np.int64)

    def add(self, routing: LayerRouting, cells: Cells, num_cells: int) -> None:
        """Count one forward."""
        cell, group = cells.cell[routing.rows], cells.group[routing.rows]
        width = self.experts + 1
        self.tokens = _added(self.tokens, np.bincount(cell, minlength=num_cells))
        place, place_group = (cell * width + 1)[:, None], (group * width + 1)[:, None]
        for choice in range(routing.expert.shape[2]):
            expert = routing.expert[:, :, choice]
            found = np.bincount((place + expert).ravel(), minlength=num_cells * width)
            if choice == self.choices:
                self.by_choice.append(np.zeros((0, width), dtype=np.int64))
                self.choices += 1
            self.by_choice[choice] = _added(self.by_choice[choice], found.reshape(-1, width))
            drawn = np.bincount((place_group + expert).ravel(), minlength=self.random.size)
            self.random += drawn.reshape(self.random.shape)

    @property
    def count(self) -> np.ndarray:
        """int64 (cells experts) assignments that were carried out."""
        rows = len(self.tokens)
        total = np.zeros((rows, self.experts), dtype=np.int64)
        for found in self.by_choice:
            total[: len(found)] += found[:, 1:]
        return total

    def described(
        self, index: CellIndex, load: Load | None, tau: float | None, taus: tuple[float, ...]
    ) -> Layer:
        """The layer with its counts of every kind."""
        count, tokens = self.count, self.tokens * self.layer.num_heads
        kinds = [(ALL, ALL, np.ones(len(tokens), dtype=bool))]
        for dimension in DIMENSIONS:
            names = np.array(index.kinds(dimension)[: len(tokens)])
            different = dict.fromkeys(name for name in names.tolist() if name)
            kinds += [(dimension, kind, names == kind) for kind in different]
        nowhere = sum(int(found[:, 0].sum()) for found in self.by_choice)
        # Whether each assignment that went nowhere was refused: a router may also not want it.
        refused = None if load is None else int(load.dropped.sum())
        told = refused is not None and refused in (0, nowhere)
        found = []
        for dimension, kind, chosen in kinds:
            if not tokens[chosen].sum():
                continue
            dropped: float | None = None
            if refused is not None and dimension == ALL:
                dropped = refused
            elif told:
                none = sum(int(c[chosen[: len(c)], 0].sum()) for c in self.by_choice)
                dropped = none if refused else 0
            stats = kind_stats(
                kind,
                torch.from_numpy(count[chosen].sum(axis=0)),
                torch.tensor(int(tokens[chosen].sum())),
                torch.tensor(dropped or 0),
                tau,
                taus,
            )
            found.append(_counts(dimension, stats, dropped is not None))
        layer = self.layer
        return Layer(
            layer.name,
            layer.block,
            layer.branch,
            layer.kind,
            layer.num_experts,
            layer.num_heads,
            self.choices,
            tuple(found),
        )

    def specialisation(self, index: CellIndex) -> list[Specialisation]:
        """How much the experts tell of each dimension of which the layer met several kinds."""
        count, found = self.count, []
        random = self.random[:, 1:].reshape(GROUPS, GROUPS, -1)
        for dimension, unit in DIMENSIONS.items():
            names = np.array(index.kinds(dimension)[: len(count)])
            kinds = dict.fromkeys(name for name in names.tolist() if name)
            rows = [count[names == kind].sum(axis=0) for kind in kinds]
            table = np.array([row for row in rows if row.any()])
            if len(table) < 2:
                continue
            groups = random.sum(axis=1 if unit == SAMPLE else 0)
            # A random grouping of n assignments in g groups tells (g - 1) c / n for some c.
            part = groups.sum() / table.sum()
            baseline = information(groups) * part * (len(table) - 1) / (GROUPS - 1)
            value = information(table)
            share = table.sum(axis=1) / table.sum()
            entropy = float(-(share * np.log(share)).sum())
            corrected = max(value - baseline, 0.0)
            found.append(
                Specialisation(
                    self.layer.name,
                    dimension,
                    value,
                    baseline,
                    corrected,
                    min(corrected / entropy, 1.0) if entropy else None,
                )
            )
        return found

    def gate(self, load: Load | None) -> Gate:
        """What the router says."""
        subtokens = int(self.tokens.sum()) * self.layer.num_heads
        in_order = len(self.by_choice) and self.by_choice[0].sum() == subtokens
        tables = [found[:, 1:].sum(axis=0) for found in self.by_choice]
        if not in_order or "ExpertChoice" in self.layer.router:
            tables = [np.sum(tables, axis=0)]
        choices = tuple(
            _choice(number + 1 if in_order else 0, table, subtokens)
            for number, table in enumerate(tables)
        )
        if load is None:
            return Gate(self.layer.name, None, None, None, None, None, choices)
        token = max(float(load.token.sum()), 1.0)
        entropy = float(load.entropy) / token
        carried, dropped = float(load.count.sum()), float(load.dropped.sum())
        return Gate(
            self.layer.name,
            entropy,
            entropy / math.log(self.experts) if self.experts > 1 else 1.0,
            float(load.balance),
            float(load.z_loss),
            dropped / max(carried + dropped, 1.0),
            choices,
        )


def information(table: np.ndarray) -> float:
    """Mutual information of rows and columns of a table of counts, in nats, as counted."""
    share = table / max(table.sum(), 1)
    apart = share.sum(axis=1, keepdims=True) * share.sum(axis=0, keepdims=True)
    there = share > 0
    return float((share[there] * np.log(share[there] / apart[there])).sum())


def loads_agree(tallies: Mapping[str, LayerTally], loads: Mapping[str, Load]) -> bool:
    """Whether the plans and the loads say the same of every expert of every layer."""
    return all(
        np.array_equal(tally.count.sum(axis=0), loads[name].count.sum(dim=0).numpy())
        for name, tally in tallies.items()
        if name in loads
    )


def _choice(number: int, table: np.ndarray, subtokens: int) -> Choice:
    ordered = np.sort(table)
    fifth, total = max(round(_FIFTH * len(table)), 1), max(int(table.sum()), 1)
    return Choice(
        number,
        int(table.sum()) / max(subtokens, 1),
        int((table == 0).sum()),
        float(ordered[-fifth:].sum() / total),
        float(ordered[:fifth].sum() / total),
    )


def _counts(dimension: str, stats: KindStats, dropped_known: bool) -> Counts:
    return Counts(
        dimension,
        stats.kind,
        stats.token,
        stats.counts,
        stats.dropped_share if dropped_known else None,
        stats.tau,
        _use(stats.usage),
        _use(stats.random),
    )


def _use(use: Usage) -> Use:
    return Use(use.activation, use.sweep, use.entropy_share, use.dead, use.max_over_mean)


def _added(sums: np.ndarray, more: np.ndarray) -> np.ndarray:
    """The sum of two tables of which the second has as many rows or more."""
    more[: len(sums)] += sums
    return more
