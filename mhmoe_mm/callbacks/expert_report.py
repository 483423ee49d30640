"""The forms in which expert statistics are told: records, table rows, logger names, warnings."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mhmoe_mm.callbacks.expert_stats import ALL, KindStats, LayerStats, Usage


class Row(NamedTuple):
    """A line of the table that `ExpertActivation.summary` returns."""

    layer: str
    kind: str
    activation: float
    entropy_share: float
    dead: int
    max_over_mean: float
    random_activation: float
    random_max_over_mean: float


def rows(layers: Sequence[LayerStats]) -> list[Row]:
    """The table of a model: one row per layer and kind."""
    return [
        Row(
            layer=stats.layer,
            kind=kind.kind,
            activation=kind.usage.activation,
            entropy_share=kind.usage.entropy_share,
            dead=int(kind.usage.dead),
            max_over_mean=kind.usage.max_over_mean,
            random_activation=kind.random.activation,
            random_max_over_mean=kind.random.max_over_mean,
        )
        for stats in layers
        for kind in stats.kinds
    ]


def as_record(stats: LayerStats, taus: Sequence[float]) -> dict[str, Any]:
    """A layer's statistics as one JSON object."""
    return {
        "layer": stats.layer,
        "experts": len(stats.overall.counts),
        "balance": _number(stats.balance),
        "z_loss": _number(stats.z_loss),
        "router_entropy_share": _number(stats.router_entropy_share),
        "kinds": {kind.kind: _kind_record(kind, taus) for kind in stats.kinds},
    }


def _kind_record(kind: KindStats, taus: Sequence[float]) -> dict[str, Any]:
    assigned = max(sum(kind.counts), 1)
    return {
        "tokens": kind.token,
        "count": kind.counts,
        "load_share": [_number(count / assigned) for count in kind.counts],
        "dropped_share": _number(kind.dropped_share),
        "tau": _number(kind.tau),
        **_usage_record(kind.usage, taus),
        "random": _usage_record(kind.random, taus) | {"count": kind.random_counts},
    }


def _usage_record(use: Usage, taus: Sequence[float]) -> dict[str, Any]:
    sweep = {f"{tau:g}": _number(share) for tau, share in zip(taus, use.sweep, strict=True)}
    return {
        name: sweep if name == "sweep" else _number(value) for name, value in use._asdict().items()
    }


def _number(value: float) -> float | None:
    """JSON knows no NaN, which a diverged router does produce."""
    return round(value, 6) if math.isfinite(value) else None


def means(layers: Sequence[LayerStats]) -> dict[str, float]:
    """Few numbers for a whole model: means over its layers."""
    overall = [stats.overall for stats in layers]
    kinds = dict.fromkeys(kind.kind for stats in layers for kind in stats.kinds)
    seen = {
        kind: [k.usage.activation for stats in layers for k in stats.kinds if k.kind == kind]
        for kind in kinds
        if kind != ALL
    }
    return {
        "activation": _mean([k.usage.activation for k in overall]),
        "activation_random": _mean([k.random.activation for k in overall]),
        **{f"activation_{kind}": _mean(values) for kind, values in seen.items()},
        "entropy_share": _mean([k.usage.entropy_share for k in overall]),
        "max_over_mean": _mean([k.usage.max_over_mean for k in overall]),
        "dead_share": _mean([k.usage.dead / len(k.counts) for k in overall]),
        "dropped_share": _mean([k.dropped_share for k in overall]),
        "balance": _mean([stats.balance for stats in layers]),
        "router_entropy_share": _mean([stats.router_entropy_share for stats in layers]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def details(layers: Sequence[LayerStats], taus: Sequence[float]) -> dict[str, float]:
    """Every number of every layer and kind, by its name in the logger."""
    return {name: value for stats in layers for name, value in _details(stats, taus)}


def _details(stats: LayerStats, taus: Sequence[float]) -> Iterator[tuple[str, float]]:
    yield f"{stats.layer}/balance", stats.balance
    yield f"{stats.layer}/z_loss", stats.z_loss
    yield f"{stats.layer}/router_entropy_share", stats.router_entropy_share
    for kind in stats.kinds:
        place = f"{stats.layer}/{kind.kind}"
        yield f"{place}/dropped_share", kind.dropped_share
        for suffix, use in (("", kind.usage), ("_random", kind.random)):
            yield f"{place}/activation{suffix}", use.activation
            yield f"{place}/entropy_share{suffix}", use.entropy_share
            yield f"{place}/dead{suffix}", use.dead
            yield f"{place}/max_over_mean{suffix}", use.max_over_mean
            for tau, share in zip(taus, use.sweep, strict=True):
                yield f"{place}/activation{suffix}_above_{tau:g}", share


def complaint(stats: LayerStats, overload: float) -> str | None:
    """One line on what is wrong with a layer that random routing would not show, else None: which
    experts it is and what to try.
    """
    seen, chance = stats.overall.usage, stats.overall.random
    counts, faults = stats.overall.counts, []
    experts = len(counts)
    if seen.dead > 0 and chance.dead < 0.1 * seen.dead:
        dead = [expert for expert, count in enumerate(counts) if not count]
        faults.append(
            f"{seen.dead:.0f} of {experts} experts got no token ({_listed(dead)}; "
            f"random routing: {chance.dead:.1f})"
        )
    if seen.max_over_mean > max(overload, 1.5 * chance.max_over_mean):
        fullest = max(range(experts), key=counts.__getitem__)
        faults.append(
            f"the fullest expert ({fullest}) got {seen.max_over_mean:.1f} even shares "
            f"(random routing: {chance.max_over_mean:.1f})"
        )
    if not faults:
        return None
    return (
        f"{stats.layer}: {' and '.join(faults)} over {stats.overall.token} tokens. Try a larger "
        "balance weight, a longer warm-up or lower learning rate, or a BiasBalancedRouter."
    )


def _listed(experts: Sequence[int], most: int = 8) -> str:
    """The numbers of experts, the first of many."""
    more = f" and {len(experts) - most} more" if len(experts) > most else ""
    return f"number {', '.join(str(expert) for expert in experts[:most])}{more}"


def headline(layers: Sequence[LayerStats], step: int, complaints: int) -> str:
    """One line on all layers, for a terminal; in rich's markup where something is wrong."""
    mean = means(layers)
    worst = max(layers, key=lambda stats: stats.overall.usage.max_over_mean)
    full, counts = worst.overall.usage.max_over_mean, worst.overall.counts
    expert = max(range(len(counts)), key=counts.__getitem__)
    dead = sum(int(stats.overall.usage.dead) for stats in layers)
    total = sum(len(stats.overall.counts) for stats in layers)
    parts = [
        f"{mean['activation']:.0%} active (random {mean['activation_random']:.0%})",
        f"entropy {mean['entropy_share']:.2f}",
        f"{dead} of {total} dead",
        f"fullest {full:.1f} even shares ({worst.layer}, expert {expert})",
    ]
    if mean["dropped_share"]:
        parts.append(f"{mean['dropped_share']:.1%} dropped")
    trouble = f"  [bold red]{complaints} to look at[/]" if complaints else "  [green]well[/]"
    return f"experts  step {step}  {'  '.join(parts)}{trouble}"
