"""Train several models the same way with several seeds, test each, and print them side by side.

    python -m tools.compare conf/comparisons/easy_vqa.yaml --jobs 2

A comparison file names the models and, for each, the options of one `mhmoe-mm fit` or of several in
a row (tools/compare/comparison.py shows one). What is finished is kept: the same command goes on
where it was stopped, and trains again only what was asked otherwise.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from mhmoe_mm.callbacks.run_folder import write_text
from mhmoe_mm.command_line.resume import RUNS
from tools.compare.cells import CellError, carry_out, cells, finished
from tools.compare.comparison import Comparison, read_comparison
from tools.compare.report import Results, figure, markdown, table


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
    except ValueError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    results, failed = _run(comparison, given.seeds or comparison.seeds, models, given)
    Console().print(table(comparison, results))
    folder = given.runs / comparison.name
    if results:
        write_text(folder / "results.json", json.dumps(results, indent=1))
        write_text(folder / "results.md", markdown(comparison, results))
        print(f"The figures are in {folder}/results.json, the table in results.md.")
    if failed:
        print(f"{failed} of {failed + len(results)} runs failed; their logs say why.")
    return 1 if failed else 0


def num_cpus() -> int:
    """The CPUs that this process may use, under `taskset` fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _run(
    comparison: Comparison, seeds: Sequence[int], models: Sequence[str], given: argparse.Namespace
) -> tuple[Results, int]:
    """(the results in the order of the table, how many runs failed)."""
    everything = cells(comparison, seeds, models, given.runs)
    there = {cell: result for cell in everything if (result := finished(cell))}
    todo = [cell for cell in everything if cell not in there]
    print(f"{len(everything)} runs, of which {len(there)} are finished", flush=True)
    threads = max(1, num_cpus() // given.jobs)
    failed = 0
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(carry_out, cell, threads): cell for cell in todo}
        for done in as_completed(running):
            cell = running[done]
            try:
                there[cell] = done.result()
            except CellError as error:
                failed += 1
                print(f"{cell.model}, seed {cell.seed}: {error}", file=sys.stderr, flush=True)
                continue
            figures = there[cell]["metrics"]
            line = "  ".join(
                f"{heading} {figure(figures.get(key))}"
                for key, heading in comparison.metrics.items()
            )
            print(f"{cell.model}, seed {cell.seed}: {line}", flush=True)
    return [there[cell] for cell in everything if cell in there], failed
