"""What a sweep came to: a table, figures, and a configuration that trains the best again."""

import csv
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml

from mhmoe_mm.storage.whole import alone, write_text
from tools.compare.report import figure, markdown
from tools.sweep.plots import draw_heatmap, draw_importance, draw_parallel
from tools.sweep.records import COST, OVER, STEP, TIME, Record, best, records
from tools.sweep.sweep import Sweep
from tools.sweep.trials import trial_folder, versions

FIGURES = {
    "importance.png": "How much each key matters for being among the best quarter (PED-ANOVA)",
    "parallel.png": "A line a trial, the darker the better",
    "heatmap.png": "The best value of each pair",
}
COSTS = ("parameters", "macs", "router_macs")


def write_report(sweep: Sweep, study: optuna.Study, runs: Path, command: str) -> list[str]:
    """Write everything into the sweep's folder; what to tell about it. Where several programs share
    a sweep, the last one that comes to its end writes all of it.
    """
    with alone(runs / sweep.name / "report.lock"):
        return _write(sweep, study, runs, command)


def _write(sweep: Sweep, study: optuna.Study, runs: Path, command: str) -> list[str]:
    folder, found = runs / sweep.name, records(study.get_trials(deepcopy=False))
    winner = best(found, sweep.search.direction == "minimize")
    drawn = [
        name
        for name, done in (
            ("importance.png", draw_importance(study, folder / "importance.png")),
            ("parallel.png", draw_parallel(sweep, found, folder / "parallel.png")),
            ("heatmap.png", draw_heatmap(sweep, found, folder / "heatmap.png")),
        )
        if done
    ]
    rows = _rows(sweep, found)
    write_text(folder / "trials.csv", _csv(rows))
    lines = [_counts(found)]
    if winner is not None:
        lines.append(
            f"The best is trial {winner.number}: {sweep.search.metric} {figure(winner.value)} with "
            f"{_values(winner)}."
        )
        if again := _write_best(sweep, winner, runs):
            lines.append(f"It is trained again by: {again}")
    text = [f"# {sweep.name}\n", f"```bash\n{command}\n```\n", *(f"{line}\n" for line in lines)]
    text.append(markdown(_shown(sweep, found)))
    text += [f"{FIGURES[name]}:\n\n![{name}]({name})\n" for name in drawn]
    write_text(folder / "results.md", "\n".join(text))
    return [*lines, f"The report is {folder}/results.md, all digits are in trials.csv beside it."]


def _counts(found: Sequence[Record]) -> str:
    counts = Counter(record.state for record in found)
    states = (*OVER, "running", "waiting", "lost")
    listed = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return f"{len(found)} trials: {listed or 'none was begun'}."


def _values(record: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in record.last.params.items())


def _rows(sweep: Sweep, found: Sequence[Record]) -> list[list[Any]]:
    """Headings, then a row a trial, with all digits."""
    keys = [dimension.key for dimension in sweep.space]
    rows: list[list[Any]] = [
        ["trial", "state", sweep.search.metric, *keys, *COSTS, "seconds_per_step", "step",
         "seconds", "attempts", "why"]
    ]  # fmt: skip
    for record in found:
        attrs = record.last.user_attrs
        cost = attrs.get(COST) or {}
        values = [record.last.params.get(key) for key in keys]
        rows.append(
            [record.number, record.state, record.value, *values, *(cost.get(key) for key in COSTS),
             attrs.get(TIME), attrs.get(STEP), record.seconds, record.attempts, record.why]
        )  # fmt: skip
    return rows


def _shown(sweep: Sweep, found: Sequence[Record]) -> list[list[str]]:
    """The table of the report: the best first, then what has no value."""
    sign = 1 if sweep.search.direction == "minimize" else -1
    finished = [record for record in found if record.value is not None]
    rest = [record for record in found if record.value is None]
    keys = [dimension.key for dimension in sweep.space]
    costs = any(record.last.user_attrs.get(COST) for record in found)
    counted = ["parameters", "multiply-adds", "of routers"] if costs else []
    rows = [["trial", *keys, sweep.search.metric, *counted, "ms per step", "seconds", "state"]]
    for record in [*sorted(finished, key=lambda one: sign * (one.value or 0)), *rest]:
        attrs = record.last.user_attrs
        values = [_short(record.last.params.get(key)) for key in keys]
        cost = attrs.get(COST) or {}
        numbers = [f"{cost[key]:,.0f}" if key in cost else "-" for key in COSTS] if costs else []
        time = f"{1000 * attrs[TIME]:.1f}" if attrs.get(TIME) else "-"
        seconds = "-" if record.seconds is None else f"{record.seconds:.0f}"
        state = f"{record.state}: {record.why}" if record.why else record.state
        if record.attempts > 1:
            state += f" ({record.attempts} attempts)"
        state = state.replace("|", "\\|")
        rows.append(
            [str(record.number), *values, figure(record.value), *numbers, time, seconds, state]
        )
    return rows


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write_best(sweep: Sweep, winner: Record, runs: Path) -> str | None:
    """Write `best.yaml` from what the trial itself wrote down; the command that trains it again.

    None where the trial's folder is on another machine.
    """
    found = versions(trial_folder(runs, sweep, winner.number))
    source = found[-1] / "config.yaml" if found else None
    if source is None or not source.exists():
        return None
    content = yaml.safe_load(source.read_text(encoding="utf-8"))
    content["name"] = f"{sweep.name}-best"
    content["ckpt_path"] = None
    path = runs / sweep.name / "best.yaml"
    command = shlex.join(["mhmoe-mm", "fit", "--config", str(path)])
    about = (
        f"# Run     {command}\n"
        f"# What    Trial {winner.number} of the sweep {sweep.name}: {_values(winner)}\n"
        f"# Expect  {sweep.search.metric} {figure(winner.value)}\n"
    )
    write_text(path, about + yaml.safe_dump(content, sort_keys=False))
    return command
