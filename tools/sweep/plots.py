"""The figures of a sweep, as PNGs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from mhmoe_mm.storage.whole import write_whole
from tools.sweep.records import Record
from tools.sweep.space import Dimension
from tools.sweep.sweep import Sweep

FEWEST, BEST = 8, 0.25
"""Importance is for being among the best quarter; nothing is said of fewer finished trials."""


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each key matters; empty where too little is known."""
    if len(study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])) < FEWEST:
        return {}
    try:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST)
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # such as where all trials have the same values
        return {}


def draw_importance(study: optuna.Study, path: Path) -> bool:
    """A bar a key; false where there is nothing to draw."""
    found = {key: share for key, share in importances(study).items() if math.isfinite(share)}
    if not found:
        return False
    figure, axes = _figure(8, 1.5 + 0.4 * len(found))
    axes.barh(list(found), list(found.values()))
    axes.invert_yaxis()
    axes.set(xlabel="importance", title=study.study_name)
    _save(figure, path)
    return True


def draw_parallel(sweep: Sweep, found: Sequence[Record], path: Path) -> bool:
    """A line a finished trial, through its values and the metric; false without any."""
    finished = [record for record in found if record.value is not None]
    if not finished:
        return False
    values = [record.value or 0.0 for record in finished]
    figure, axes = _figure(4 + 1.8 * len(sweep.space), 5)
    scales = [_scale(dimension) for dimension in sweep.space]
    low, high = min(values), max(values)
    for record, value in zip(finished, values, strict=True):
        place = (value - low) / (high - low) if high > low else 0.5
        at = [
            scale[0](record.last.params[d.key])
            for scale, d in zip(scales, sweep.space, strict=True)
        ]
        better = place if sweep.search.direction == "minimize" else 1 - place
        axes.plot([*at, place], color=colormaps["viridis"](0.9 * better), alpha=0.8)
    for number, (_, ticks) in enumerate(scales):
        axes.axvline(number, color="0.8", zorder=0)
        for height, text in ticks:
            axes.text(number + 0.03, height, text, fontsize=8)
    end = len(scales)
    axes.axvline(end, color="0.8", zorder=0)
    for height, value in ((0, low), (1, high)):
        axes.text(end + 0.03, height, f"{value:.4f}", fontsize=8)
    names = [*(dimension.key for dimension in sweep.space), sweep.search.metric]
    axes.set_xticks(range(end + 1), [name.rsplit(".", 1)[-1] for name in names])
    axes.set(yticks=[], title=sweep.name, xlim=(-0.1, end + 0.5), ylim=(-0.05, 1.05))
    _save(figure, path)
    return True


def draw_heatmap(sweep: Sweep, found: Sequence[Record], path: Path) -> bool:
    """The best value of each pair of the two keys that the file names; false where it names none,
    or no trial has finished. What has no value says why.
    """
    if sweep.heatmap is None or not any(record.value is not None for record in found):
        return False
    keys = sweep.heatmap
    rows, columns = (_seen(key, sweep, found) for key in keys)
    sign = 1 if sweep.search.direction == "minimize" else -1
    known: dict[tuple[Any, Any], float] = {}
    states: dict[tuple[Any, Any], str] = {}
    for record in found:
        pair = record.last.params.get(keys[0]), record.last.params.get(keys[1])
        states[pair] = record.state
        if record.value is not None:
            known[pair] = sign * min(sign * record.value, sign * known.get(pair, record.value))
    table = [[known.get((row, column), math.nan) for column in columns] for row in rows]
    figure, axes = _figure(2.5 + 1.1 * len(columns), 2 + 0.7 * len(rows))
    colours = "viridis_r" if sweep.search.direction == "minimize" else "viridis"
    shown = axes.imshow(table, cmap=colours, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            value = known.get((row, column))
            text = f"{value:.3f}" if value is not None else states.get((row, column), "")
            white = value is not None and shown.norm(value) * sign > 0.5 * sign
            dark = white if sign == -1 else not white
            axes.text(x, y, text, ha="center", va="center", fontsize=8,
                      color="black" if dark or value is None else "white")  # fmt: skip
    axes.set_xticks(range(len(columns)), [f"{column}" for column in columns])
    axes.set_yticks(range(len(rows)), [f"{row}" for row in rows])
    axes.set(ylabel=keys[0], xlabel=keys[1], title=f"{sweep.name}: {sweep.search.metric}")
    figure.colorbar(shown)
    _save(figure, path)
    return True


def _seen(key: str, sweep: Sweep, found: Sequence[Record]) -> list[Any]:
    """The values of a key, all of a grid's or those that were tried."""
    [dimension] = (one for one in sweep.space if one.key == key)
    if isinstance(dimension.distribution, CategoricalDistribution):
        return list(dimension.distribution.choices)
    return sorted({record.last.params[key] for record in found if key in record.last.params})


def _scale(dimension: Dimension):
    """(the height of a value between 0 and 1, heights with what to write there)."""
    found: Any = dimension.distribution
    if isinstance(found, CategoricalDistribution):
        choices = list(found.choices)
        last = max(len(choices) - 1, 1)
        ticks = [(number / last, str(choice)) for number, choice in enumerate(choices)]
        return (lambda value: choices.index(value) / last), ticks
    of = math.log if found.log else float
    low, high = of(found.low), of(found.high)
    ticks = [(0.0, f"{found.low:g}"), (1.0, f"{found.high:g}")]
    return (lambda value: (of(value) - low) / ((high - low) or 1.0)), ticks


def _figure(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    write_whole(path, lambda part: figure.savefig(part, format="png", dpi=120))
