"""Curves of a comparison: a figure that was logged while training, against the step."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mhmoe_mm.storage.whole import write_whole


class Curve(NamedTuple):
    """A figure at the steps where it was logged."""

    step: list[int]
    value: list[float]


class Band(NamedTuple):
    """The mean over seeds at every step that all have, the lowest and the highest."""

    step: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def logged(run: Path, key: str) -> Curve:
    """What a run's `metrics.csv` has under a key; nothing where there is no such file or column.

    Where a step was logged twice, the later line counts.
    """
    path, found = run / "metrics.csv", {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get(key):
                    found[int(row["step"])] = float(row[key])
    steps = sorted(found)
    return Curve(steps, [found[step] for step in steps])


def band(curves: Sequence[Curve]) -> Band:
    """Several curves as one."""
    by_step = [dict(zip(curve.step, curve.value, strict=True)) for curve in curves]
    steps = sorted(set.intersection(*(set(found) for found in by_step))) if by_step else []
    values = [[found[step] for found in by_step] for step in steps]
    return Band(
        steps,
        [statistics.mean(at) for at in values],
        [min(at) for at in values],
        [max(at) for at in values],
    )


def draw(bands: Mapping[str, Band], key: str, title: str, path: Path) -> bool:
    """Draw one line a model, with its band, to a PNG; false where there is nothing to draw."""
    bands = {model: found for model, found in bands.items() if found.step}
    if not bands:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for model, found in bands.items():
        [line] = axes.plot(
            found.step, found.mean, marker="." if len(found.step) < 50 else "", label=model
        )
        axes.fill_between(found.step, found.low, found.high, alpha=0.2, color=line.get_color())
    lowest = min(min(found.low) for found in bands.values())
    # The first steps fall far and would leave no room for the differences that are looked for.
    start = max(found.high[len(found.high) // 4] for found in bands.values())
    if start > lowest:
        axes.set_ylim(lowest - 0.05 * (start - lowest), start + 0.1 * (start - lowest))
    axes.set(xlabel="step", ylabel=key, title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=120))
    return True
