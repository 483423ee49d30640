"""The results of a comparison as a table, for the screen and as Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from tools.compare.comparison import Comparison

Results = Sequence[dict[str, Any]]


def rows(comparison: Comparison, results: Results) -> list[list[str]]:
    """Headings, then for every model the mean over its seeds with the lowest and the highest, then
    chance.
    """
    found = [["model", "seeds", *comparison.metrics.values(), "minutes"]]
    for model in comparison.models:
        mine = [result for result in results if result["model"] == model]
        if not mine:
            continue
        figures = [spread([one["metrics"].get(key) for one in mine]) for key in comparison.metrics]
        minutes = statistics.mean(sum(result["minutes"]) for result in mine)
        found.append([model, str(len(mine)), *figures, f"{minutes:.1f}"])
    if comparison.chance:
        chance = [figure(comparison.chance.get(key)) for key in comparison.metrics]
        found.append(["chance", "", *chance, ""])
    return found


def table(comparison: Comparison, results: Results) -> Table:
    """For the screen."""
    headings, *body = rows(comparison, results)
    shown = Table(title=f"{comparison.name}: mean over seeds (lowest to highest)")
    for number, heading in enumerate(headings):
        shown.add_column(heading, justify="right" if number else "left")
    for row in body:
        shown.add_row(*row)
    return shown


def markdown(comparison: Comparison, results: Results) -> str:
    """For a document."""
    headings, *body = rows(comparison, results)
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


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
