"""Train several models the same way with several seeds, test each, and print them side by side.

    python -m tools.compare conf/comparisons/easy_vqa.yaml --jobs 2

A comparison file names the models and, for each, the options of one `mhmoe-mm fit` or of several in
a row (tools/compare/comparison.py shows one). What is finished is kept: the same command goes on
where it was stopped, and trains again only what was asked otherwise.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console

from mhmoe_mm.command_line.resume import RUNS
from mhmoe_mm.models.net_cost import NetCost
from mhmoe_mm.storage.whole import write_text
from tools.compare.cells import Cell, CellError, carry_out, cells, finished
from tools.compare.comparison import Comparison, read_comparison
from tools.compare.curves import band, draw, logged
from tools.compare.nets import write_nets
from tools.compare.places import places
from tools.compare.report import Results, costs_of, document, figure, table, verdict

Found = Mapping[Cell, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit status: 0, 1 if a run failed, 2 if the command line was refused."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("comparison", type=Path, help="a file such as those of conf/comparisons")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the file")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the CPU (1)"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="the folder of all runs (runs)")
    given = parser.parse_args(argv)
    try:
        comparison = read_comparison(given.comparison)
        models = given.models or list(comparison.models)
        if unknown := [model for model in models if model not in comparison.models]:
            there = ", ".join(comparison.models)
            raise ValueError(f"{given.comparison} has no model {unknown[0]}; it has {there}.")
        if given.jobs < 1:
            raise ValueError(f"--jobs is at least 1, got {given.jobs}.")
        comparison, planned = write_nets(comparison, given.runs)
    except ValueError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    for line in verdict(comparison, planned):
        print(line, flush=True)
    command = shlex.join(["python", "-m", "tools.compare", *(argv or sys.argv[1:])])
    everything = cells(comparison, given.seeds or comparison.seeds, models, given.runs)

    def report(found: Found, failures: Sequence[str]) -> None:
        _write(comparison, everything, found, failures, planned, command, given.runs)

    found, failures = _run(comparison, everything, given.jobs, report)
    results = _in_order(everything, found)
    Console(width=None if sys.stdout.isatty() else 200).print(table(comparison, results))
    for line in verdict(comparison, costs_of(results, planned)):
        print(line)
    folder = given.runs / comparison.name
    print(f"The report is {folder}/results.md, the figures are in results.json beside it.")
    if failures:
        print(f"{len(failures)} of {len(everything)} runs failed; their logs say why.")
    return 1 if failures else 0


def _run(
    comparison: Comparison,
    everything: Sequence[Cell],
    jobs: int,
    report: Callable[[Found, Sequence[str]], None],
) -> tuple[Found, list[str]]:
    """Carry out what is not finished and report after each run: (the results, what failed)."""
    there = {cell: result for cell in everything if (result := finished(cell))}
    todo = [cell for cell in everything if cell not in there]
    print(f"{len(everything)} runs, of which {len(there)} are finished", flush=True)
    failures: list[str] = []
    free = places(jobs)

    def in_a_place(cell: Cell) -> dict[str, Any]:
        place = free.get()
        try:
            return carry_out(cell, place)
        finally:
            free.put(place)

    report(there, failures)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(in_a_place, cell): cell for cell in todo}
        for done in as_completed(running):
            cell = running[done]
            try:
                there[cell] = done.result()
            except CellError as error:
                failures.append(f"{cell.model}, seed {cell.seed}: {error}")
                print(failures[-1], file=sys.stderr, flush=True)
            else:
                figures = there[cell]["metrics"].get
                line = (
                    f"{head} {figure(figures(key))}" for key, head in comparison.metrics.items()
                )
                print(f"{cell.model}, seed {cell.seed}: {'  '.join(line)}", flush=True)
            report(there, failures)
    return there, failures


def _write(
    comparison: Comparison,
    everything: Sequence[Cell],
    found: Found,
    failures: Sequence[str],
    planned: Mapping[str, NetCost],
    command: str,
    runs: Path,
) -> None:
    """`results.json`, `curves.png` and `results.md`, of what there is until now."""
    folder = runs / comparison.name
    results = _in_order(everything, found)
    curves: dict[str, list] = {model: [] for model in comparison.models}
    for cell in everything:
        if cell in found:
            curves[cell.model].append(logged(cell.last_stage, comparison.curve))
    bands = {model: band(of_seeds) for model, of_seeds in curves.items()}
    drawn = draw(bands, comparison.curve, comparison.name, folder / "curves.png")
    costs = costs_of(results, planned)
    text = document(comparison, results, costs, command, drawn, failures)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    write_text(folder / "results.md", text)


def _in_order(everything: Sequence[Cell], found: Found) -> Results:
    return [found[cell] for cell in everything if cell in found]
