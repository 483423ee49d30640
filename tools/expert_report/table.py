"""The report's main figures in the terminal."""

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from tools.expert_report.contents import Patches, RunContents, Words


def print_summary(contents: Sequence[RunContents], console: Console) -> None:
    """A column per run: what it is, its activation beside the paper's, how even, what is wrong."""
    table = Table(title="What the experts do")
    table.add_column("")
    for run in contents:
        table.add_column(run.summary.name, justify="right")

    def add(label: str, cell: Callable[[RunContents], str]) -> None:
        cells = [cell(run) for run in contents]
        if any(cells):
            table.add_row(label, *cells)

    add("layers", lambda run: f"{run.summary.num_layers} {run.summary.layer_kind}")
    add("heads x experts", lambda run: f"{run.summary.num_heads} x {run.summary.num_experts}")
    add("tokens", lambda run: f"{run.summary.tokens:,}")
    add("experts activated", lambda run: _percent(run.activation[0].value))
    add("  were routing random", lambda run: _percent(run.activation[0].random))
    add("  the paper's", lambda run: _percent(run.activation[0].paper))
    add("entropy of the load, 1 = even", lambda run: _mean(run, "entropy_share"))
    add("fullest expert, even shares", lambda run: _mean(run, "max_over_mean"))
    add("experts per word", lambda run: f"{run.words.groups[0].mean:.2f}" if run.words else "")
    add("  were routing random", lambda run: f"{_chance(run.words)}" if run.words else "")
    add("experts per patch", lambda run: f"{run.patches.steps[-1].mean:.2f}" if run.patches else "")
    add("  were routing random", lambda run: f"{_chance(run.patches)}" if run.patches else "")
    for dimension in dict.fromkeys(d.name for run in contents for d in run.dimensions):
        add(f"expert tells the {dimension}", lambda run, d=dimension: _told(run, d))
    console.print(table)
    for run in contents:
        console.print(f"{run.summary.name}: active means {run.activation[0].rule}")
        for line in run.complaints:
            console.print(f"[bold]{run.summary.name}[/]: {line}", markup=True)
    console.print(
        "The paper (https://arxiv.org/abs/2404.15045) does not give its threshold: compare the "
        "runs with each other, and the whole sweep."
    )


def _chance(found: Words | Patches) -> str:
    both = found.random if found.random_distinct is None else found.random_distinct
    return f"{both:.2f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _mean(run: RunContents, name: str) -> str:
    values = [getattr(layer.counts[0].use, name) for layer in run.layers]
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3f}" if known else ""


def _told(run: RunContents, dimension: str) -> str:
    shares = [s.share for s in run.specialisation if s.dimension == dimension]
    known = [share for share in shares if share is not None]
    return f"{sum(known) / len(known):.2%} of it" if known else ""
