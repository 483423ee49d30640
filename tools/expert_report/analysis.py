"""All analyses of recorded routing, one chunk in memory at a time."""

from collections.abc import Collection, Sequence

import numpy as np
import torch

from mhmoe_mm.callbacks.expert_report import complaint
from mhmoe_mm.callbacks.expert_stats import Usage, layer_stats, random_counts, usage
from mhmoe_mm.callbacks.routing_file import add_loads
from mhmoe_mm.callbacks.routing_tokens import EDGE_FROM, RoutingChunk
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.moe.sparse_layers import Description
from tools.expert_report.cells import DIMENSIONS, CellIndex
from tools.expert_report.contents import (
    VERSION,
    Activation,
    Curve,
    Dimension,
    Fact,
    Gate,
    Image,
    Layer,
    Patches,
    PatchStep,
    RunContents,
    Sentence,
    Series,
    Specialisation,
    Summary,
)
from tools.expert_report.diversity import mean_diversity
from tools.expert_report.patch_spread import PatchSpread
from tools.expert_report.tally import LayerTally, loads_agree
from tools.expert_report.together import AllTogether
from tools.expert_report.word_spread import WordSpread

TAUS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RANDOM_LAYERS = 64
"""Layers that are drawn for the random baseline of the whole network's activation."""
PAPER = {"MHMoE": 0.9071, "SparseMoE": 0.0833}
"""Activation that https://arxiv.org/abs/2404.15045 reports (figures 1 and 5), by kind of layer."""


class Analysis:
    """Takes routing chunk by chunk; its memory does not grow with their number.

    Args:
        layers: of the network.
        pieces: what each id of the vocabulary spells; empty where nobody knows.
        tau: frequency above which an expert is active; None for half of an even share.
        listed: words to be compared with the rest.
        taus: thresholds of the sweep.
    """

    def __init__(
        self,
        layers: Sequence[Description],
        pieces: Sequence[str] = (),
        tau: float | None = None,
        listed: Collection[str] = (),
        taus: tuple[float, ...] = TAUS,
    ):
        self.descriptions = list(layers)
        self.by_name = {layer.name: layer for layer in layers}
        self.tau, self.taus = tau, taus
        self.cells = CellIndex()
        self.tallies = {layer.name: LayerTally(layer) for layer in layers}
        self.together = AllTogether(self.descriptions)
        self.words = WordSpread(pieces, layers, listed) if pieces else None
        self.patches = PatchSpread(self.descriptions)
        self.loads: dict[str, Load] = {}
        self.num_samples = self.num_tokens = 0

    def add(self, chunk: RoutingChunk) -> None:
        """Count one forward."""
        cells = self.cells.of(chunk)
        routed = np.zeros(len(chunk.tokens.sample), dtype=bool)
        for name, routing in chunk.layers.items():
            self.tallies[name].add(routing, cells, self.cells.size)
            routed[routing.rows] = True
        self.together.add(chunk)
        diversity = mean_diversity(chunk, self.by_name)
        if self.words is not None:
            self.words.add(chunk, diversity)
        self.patches.add(chunk, diversity)
        add_loads(self.loads, chunk.loads)
        self.num_samples += len(chunk.samples.key)
        self.num_tokens += int(routed.sum())

    def layers(self) -> tuple[Layer, ...]:
        """The layers that routed anything, with their counts."""
        return tuple(
            self.tallies[layer.name].described(
                self.cells, self.loads.get(layer.name), self.tau, self.taus
            )
            for layer in self._used()
        )

    def _used(self) -> list[Description]:
        used = [layer for layer in self.descriptions if self.tallies[layer.name].tokens.sum()]
        if not used:
            raise ValueError("No sparse layer routed any token: there is nothing to report.")
        return used

    def specialisation(self) -> tuple[Specialisation, ...]:
        """Of every layer and dimension."""
        used = [self.tallies[layer.name] for layer in self._used()]
        return tuple(one for tally in used for one in tally.specialisation(self.cells))

    def gates(self) -> tuple[Gate, ...]:
        """Of every layer."""
        return tuple(
            self.tallies[layer.name].gate(self.loads.get(layer.name)) for layer in self._used()
        )

    def dimensions(self) -> tuple[Dimension, ...]:
        """The ways to tell tokens apart that there were, and the kinds."""
        found = []
        for name, unit in DIMENSIONS.items():
            names = self.cells.kinds(name)
            tokens = np.zeros(len(names), dtype=np.int64)
            for tally in self.tallies.values():
                tokens[: len(tally.tokens)] += tally.tokens
            there = dict.fromkeys(n for n, t in zip(names, tokens.tolist(), strict=True) if n and t)
            if there:
                found.append(Dimension(name, unit, tuple(there)))
        return tuple(found)

    def complaints(self, overload: float) -> tuple[str, ...]:
        """What `ExpertActivation` would warn of, and where plans and loads differ."""
        stats = [layer_stats(name, load, self.tau, self.taus) for name, load in self.loads.items()]
        found = [complaint(one, overload) for one in stats if one is not None]
        if not loads_agree(self.tallies, self.loads):
            found.append(
                "The plans and the loads of the routers count different assignments: a router of "
                "this network reports what it does not do, so distrust its figures."
            )
        return tuple(one for one in found if one)

    def activation(self, layers: Sequence[Layer]) -> tuple[Activation, ...]:
        """Of the whole network, per sub-token and, with several heads, per token."""
        heads = max(layer.num_heads for layer in layers)
        return tuple(
            self._activation(unit, layers)
            for unit in ("sub-token", "token")[: 1 if heads == 1 else 2]
        )

    def _activation(self, unit: str, layers: Sequence[Layer]) -> Activation:
        if self.tau is None:
            rule = f"half of an even share of the layer's assignments, per {unit}"
        else:
            rule = f"a frequency above {self.tau:g} per {unit}"
        taus, seen, drawn = [], [], []
        for layer in layers:
            overall, times = layer.counts[0], layer.num_heads if unit == "token" else 1
            tau = overall.tau * times if self.tau is None else self.tau
            tokens, every = overall.tokens // times, (tau, *self.taus)
            counts = torch.tensor([overall.count])
            random = random_counts(sum(overall.count), layer.num_experts, RANDOM_LAYERS)
            seen.append(_shares(usage(counts, tokens, every)))
            drawn.append(_shares(usage(random, tokens, every)))
            taus.append(tau)
        own, chance = np.mean(seen, axis=0).tolist(), np.mean(drawn, axis=0).tolist()
        papers = {PAPER.get(layer.kind) for layer in layers}
        return Activation(
            unit=unit,
            rule=rule,
            tau=float(np.mean(taus)),
            value=own[0],
            random=chance[0],
            sweep=tuple(own[1:]),
            random_sweep=tuple(chance[1:]),
            paper=papers.pop() if len(papers) == 1 else None,
        )

    def patches_of(self, steps: Sequence[PatchStep]) -> Patches | None:
        """The study of patches over checkpoints."""
        if not steps:
            return None
        chance, distinct = (self.patches.random(distinct) for distinct in (False, True))
        return Patches(chance, EDGE_FROM, tuple(steps), distinct)

    def contents(
        self,
        summary: Summary,
        overload: float = 4.0,
        curves: Sequence[Curve] = (),
        history: Sequence[Series] = (),
        sentences: Sequence[Sentence] = (),
        images: Sequence[Image] = (),
        patch_steps: Sequence[PatchStep] = (),
        least: int = 5,
    ) -> RunContents:
        """Everything about the run."""
        layers = self.layers()
        heads, between = self.together.results()
        return RunContents(
            version=VERSION,
            summary=summary,
            complaints=self.complaints(overload),
            taus=self.taus,
            dimensions=self.dimensions(),
            layers=layers,
            activation=self.activation(layers),
            curves=tuple(curves),
            history=tuple(history),
            words=None if self.words is None else self.words.result(least),
            sentences=tuple(sentences),
            images=tuple(images),
            patches=self.patches_of(patch_steps),
            heads_together=heads,
            layers_together=between,
            specialisation=self.specialisation(),
            gates=self.gates(),
            experts=() if self.words is None else self.words.experts(least),
        )

    def summary(
        self,
        name: str,
        source: str,
        task: str,
        step: int | None,
        parameters: int | None,
        data: str,
        facts: Sequence[Fact] = (),
    ) -> Summary:
        """What was looked at."""
        used = self._used()
        each = [
            float(tally.count.sum()) / max(float(tally.tokens.sum()) * tally.layer.num_heads, 1)
            for tally in (self.tallies[layer.name] for layer in used)
        ]
        return Summary(
            name=name,
            source=source,
            task=task,
            layer_kind=", ".join(dict.fromkeys(layer.kind for layer in used)),
            router=", ".join(dict.fromkeys(layer.router for layer in used)),
            step=step,
            parameters=parameters,
            num_layers=len(used),
            num_heads=max(layer.num_heads for layer in used),
            num_experts=max(layer.num_experts for layer in used),
            experts_per_subtoken=float(np.mean(each)),
            data=data,
            samples=self.num_samples,
            tokens=self.num_tokens,
            facts=tuple(facts),
        )


def _shares(use: Usage) -> list[float]:
    """The shares of active experts: above tau, then above each threshold of the sweep."""
    return [use.activation, *use.sweep]
