"""The results of a comparison as tables, for the screen and as a Markdown report."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from mhmoe_mm.models.net_cost import NetCost
from tools.compare.comparison import Comparison
from tools.compare.matching import differences, remarks

Results = Sequence[dict[str, Any]]


def rows(comparison: Comparison, results: Results) -> list[list[str]]:
    """Headings, then for every model the mean over its seeds with the lowest and the highest, then
    chance. The time per step is that of the last stage, the memory that of the hungriest.
    """
    measured = any(_last(one) for one in results)
    used = ["ms per step", "peak MiB"] if measured else []
    found = [["model", "seeds", *comparison.metrics.values(), *used, "minutes"]]
    for model in comparison.models:
        mine = [result for result in results if result["model"] == model]
        if not mine:
            continue
        figures = [spread([one["metrics"].get(key) for one in mine]) for key in comparison.metrics]
        used = [_time(mine), _memory(mine)] if measured else []
        minutes = statistics.mean(sum(result["minutes"]) for result in mine)
        found.append([model, str(len(mine)), *figures, *used, f"{minutes:.1f}"])
    if comparison.chance:
        chance = [figure(comparison.chance.get(key)) for key in comparison.metrics]
        found.append(["chance", "", *chance, *("" for _ in used), ""])
    return found


def _last(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the last stage took; empty if that was not measured."""
    return (result.get("resources") or [None])[-1] or {}


def _time(results: Results) -> str:
    """The mean over seeds of the median step; other work on the machine moves the median least."""
    seconds = [_last(one).get("median_seconds_per_step") for one in results]
    known = [value for value in seconds if value is not None]
    return f"{1000 * statistics.mean(known):.1f}" if len(known) == len(seconds) else "-"


def _memory(results: Results) -> str:
    peaks = [s["peak_memory_bytes"] for r in results for s in r.get("resources") or [] if s]
    return f"{max(peaks) / 2**20:.0f}" if peaks else "-"


def costs_of(results: Results, planned: Mapping[str, NetCost]) -> dict[str, NetCost]:
    """What the models cost: as they were trained, or else as their nets were written."""
    trained = {one["model"]: _last(one).get("net") for one in results}
    return {
        **planned,
        **{model: NetCost(**cost) for model, cost in trained.items() if cost is not None},
    }


def cost_rows(comparison: Comparison, costs: Mapping[str, NetCost]) -> list[list[str]]:
    """Headings, then what every model costs, and how far that is from the reference."""
    known = {model: costs[model] for model in comparison.models if model in costs}
    reference = known.get(comparison.reference or "")
    counted = ("parameters", "active", "in feed-forward nets", "multiply-adds", "of routers")
    found = [["model", *counted]]
    if reference:
        found[0] += [
            f"{what} beside {comparison.reference}" for what in ("parameters", "multiply-adds")
        ]
    for model, cost in known.items():
        counts = (
            cost.parameters, cost.active_parameters, cost.feed_forward_parameters,
            cost.macs, cost.router_macs,
        )  # fmt: skip
        beside = [f"{share:+.1%}" for share in differences(reference, cost)] if reference else []
        found.append([model, *(f"{count:,.0f}" for count in counts), *beside])
    return found


def verdict(comparison: Comparison, costs: Mapping[str, NetCost]) -> list[str]:
    """A line for everything that makes the comparison unequal; empty without a reference."""
    reference = comparison.reference
    if reference is None:
        return []
    missing = [model for model in comparison.models if model not in costs]
    unknown = [f"The costs of {m} are not known before it is trained." for m in missing]
    known = {model: costs[model] for model in comparison.models if model in costs}
    lines = remarks(known, reference, comparison.tolerance) if reference in known else []
    return lines + unknown


def table(comparison: Comparison, results: Results) -> Table:
    """For the screen."""
    headings, *body = rows(comparison, results)
    shown = Table(title=f"{comparison.name}: mean over seeds (lowest to highest)")
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in body:
        shown.add_row(*row)
    return shown


def markdown(found: Sequence[Sequence[str]]) -> str:
    """Rows with headings as a table of a document."""
    headings, *body = found
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def document(
    comparison: Comparison,
    results: Results,
    costs: Mapping[str, NetCost],
    command: str,
    curves: bool,
    failures: Sequence[str],
) -> str:
    """The whole report: figures, curves (`curves.png` beside it), costs, and how to repeat it."""
    parts = [f"# {comparison.name}\n", f"```bash\n{command}\n```\n"]
    parts += [
        "Mean over seeds, the lowest and the highest; a dash where a model has no such figure.\n",
        markdown(rows(comparison, results)),
    ]
    if curves:
        parts.append(f"![{comparison.curve} against the step](curves.png)\n")
    if costs:
        parts += [
            "What the models cost, counted on the modules as built. Multiply-adds are per token, "
            "of the feed-forward nets without routers (as the papers count); active parameters "
            "leave out the experts that a token does not reach.\n",
            markdown(cost_rows(comparison, costs)),
        ]
    if lines := verdict(comparison, costs):
        parts.append("".join(f"- {line}\n" for line in lines))
    if failures:
        parts.append("Runs that failed:\n\n" + "".join(f"- {line}\n" for line in failures))
    return "\n".join(parts)


def spread(values: Sequence[float | None]) -> str:
    """Mean, lowest and highest; a dash where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    mean = figure(statistics.mean(known))
    return f"{mean} ({figure(min(known))} to {figure(max(known))})" if len(known) > 1 else mean


def figure(value: float | None) -> str:
    """A number to four digits behind the point."""
    return "-" if value is None else f"{value:.4f}"
