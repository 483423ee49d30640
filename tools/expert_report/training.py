"""What a run's folder says of its training: curves, and how the experts' loads went."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from tools.expert_report.contents import Curve, Series

T = TypeVar("T")
MOST_POINTS = 400
"""Of a curve."""
MOST_EVENTS = 60
"""Of a layer and stage."""
MOST_NUMBERS = 300_000
"""Of the loads of all series; beyond it their shares are left out."""
_SKIPPED = ("epoch", "step")
_FIELDS = (
    "activation",
    "entropy_share",
    "dead",
    "max_over_mean",
    "dropped_share",
)


def curves(folder: Path) -> tuple[Curve, ...]:
    """The figures of a run's `metrics.csv`, thinned; none without the file.

    Raises:
        ValueError: it is no table of figures.
    """
    file = folder / "metrics.csv"
    if not file.is_file():
        return ()
    found: dict[str, dict[int, float | None]] = defaultdict(dict)
    try:
        with file.open(newline="", encoding="utf-8") as table:
            for row in csv.DictReader(table):
                step = int(float(row["step"]))
                for name, value in row.items():
                    if name and name not in _SKIPPED and value:
                        found[name][step] = _number(float(value))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a table of figures over steps: {error!r}.") from error
    result = []
    for name, values in sorted(found.items()):
        steps = thinned(sorted(values), MOST_POINTS)
        result.append(Curve(name, tuple(steps), tuple(values[step] for step in steps)))
    return tuple(result)


def history(folder: Path) -> tuple[Series, ...]:
    """The loads of a run's `experts.jsonl`, thinned; none without the file.

    Where a run that was resumed repeats a step, its later line counts.

    Raises:
        ValueError: a line that is not one of `ExpertActivation`'s, by number.
    """
    file = folder / "experts.jsonl"
    if not file.is_file():
        return ()
    events: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                event = json.loads(line)
                events[event["stage"], event["layer"]][int(event["step"])] = event
            except (ValueError, KeyError, TypeError) as error:
                if not line.endswith("\n"):
                    continue  # cut off in the middle, by a kill
                raise ValueError(
                    f"{file}, line {number} is not a line of ExpertActivation: {error!r}."
                ) from error
    found = []
    for (stage, layer), by_step in events.items():
        steps = thinned(sorted(by_step), MOST_EVENTS)
        kinds = dict.fromkeys(kind for step in steps for kind in by_step[step]["kinds"])
        for kind in kinds:
            there = [by_step[step] for step in steps if kind in by_step[step]["kinds"]]
            found.append(_series(stage, layer, kind, there))
    size = sum(len(series.steps) * len(series.load_share[0]) for series in found)
    if size > MOST_NUMBERS:
        found = [series._replace(load_share=()) for series in found]
    return tuple(found)


def _series(stage: str, layer: str, kind: str, events: Sequence[dict[str, Any]]) -> Series:
    own = [event["kinds"][kind] for event in events]
    return Series(
        stage=stage,
        layer=layer,
        kind=kind,
        steps=tuple(event["step"] for event in events),
        load_share=tuple(tuple(one["load_share"]) for one in own),
        random_activation=tuple(one["random"]["activation"] for one in own),
        balance=tuple(event["balance"] for event in events),
        router_entropy_share=tuple(event["router_entropy_share"] for event in events),
        **{name: tuple(one[name] for one in own) for name in _FIELDS},
    )


def thinned(steps: list[T], most: int) -> list[T]:
    """At most so many of them, evenly, the first and the last among them; one is the last."""
    if len(steps) <= most:
        return steps
    if most < 2:
        return steps[len(steps) - most :]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
