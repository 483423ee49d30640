"""Train several models the same way with several seeds, test each, and print them side by side.

    python -m tools.compare conf/comparisons/easy_vqa.yaml --jobs 2

A comparison file names the models and, for each, the options of one `mhmoe-mm fit` or of several in
a row; `{previous}` in an option is the last checkpoint of the stage before. What is finished is
kept: the same command goes on where it was stopped.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

RUNS = Path("runs")
PROGRAM = [sys.executable, "-c", "from mhmoe_mm.cli import main; main()"]
KEYS = {"name", "seeds", "stages", "test", "models", "metrics", "chance"}


@dataclass(frozen=True)
class Comparison:
    """What a comparison file says.

    Args:
        name: of the comparison; its runs lie under `runs/NAME/MODEL/seed-N`.
        seeds: every model is trained once with each.
        models: by the name that the table shows, the options of each stage.
        test: options that only the test gets.
        metrics: which figures of `test.json` are shown, and under which heading.
        chance: what guessing would score, by metric; may be empty.
    """

    name: str
    seeds: list[int]
    models: dict[str, list[list[str]]]
    test: list[str]
    metrics: dict[str, str]
    chance: dict[str, float]


@dataclass(frozen=True)
class Cell:
    """One model with one seed."""

    model: str
    seed: int
    stages: list[list[str]]
    test: list[str]
    folder: str
    """Below `runs/`."""

    @property
    def result(self) -> Path:
        """Written last: a cell that has it is finished."""
        return RUNS / self.folder / "result.json"


def read_comparison(path: Path) -> Comparison:
    """A comparison file, checked.

    Raises:
        ValueError: it is not there, not YAML, or lacks or misnames something.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict) or not {"name", "models", "metrics"} <= content.keys():
        raise ValueError(f"{path} must name `name`, `models` and `metrics`.")
    if unknown := content.keys() - KEYS:
        raise ValueError(f"{path} has the key {sorted(unknown)[0]}; known are {sorted(KEYS)}.")
    common = [_words(stage) for stage in content.get("stages", [""])]
    models = {}
    for model, own in content["models"].items():
        own = [_words(stage) for stage in (own if isinstance(own, list) else [own])]
        if len(own) != len(common):
            raise ValueError(
                f"{path}: {model} has options for {len(own)} stages, but `stages` has "
                f"{len(common)}: give each model one entry per stage, an empty one if need be, or "
                "null where the model leaves the stage out."
            )
        both = zip(common, own, strict=True)
        models[model] = [[*shared, *more] for shared, more in both if more is not None]
    return Comparison(
        name=content["name"],
        seeds=content.get("seeds", [0]),
        models=models,
        test=_words(content.get("test", "")) or [],
        metrics=content["metrics"],
        chance=content.get("chance", {}),
    )


def _words(options: str | None) -> list[str]:
    """An entry's words; None, where a model leaves a stage out, stays None."""
    return options if options is None else options.split()


def cells(comparison: Comparison, seeds: Sequence[int], models: Sequence[str]) -> list[Cell]:
    """What is to be trained: all models with the first seed, then all with the next."""
    found = []
    for seed in seeds:
        for model in models:
            slug = model.lower().replace(" ", "-").replace("/", "-")
            folder = f"{comparison.name}/{slug}/seed-{seed}"
            stages = comparison.models[model]
            found.append(Cell(model, seed, stages, comparison.test, folder))
    return found


def carry_out(cell: Cell, threads: int) -> dict[str, Any]:
    """Train and test one cell, unless that was done before with the same options.

    Raises:
        RuntimeError: a command failed; says which log tells why.
    """
    asked = {"stages": cell.stages, "test": cell.test}
    if cell.result.exists():
        there = json.loads(cell.result.read_text())
        if there["asked"] == asked:
            return there
    place = RUNS / cell.folder
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    checkpoint, minutes = "", []
    for number, stage in enumerate(cell.stages, start=1):
        options = [word.replace("{previous}", checkpoint) for word in stage]
        name = f"{cell.folder}/stage-{number}"
        begin = time.monotonic()
        run = _program(["fit", *options], name, cell.seed, place / f"stage-{number}.log", threads)
        minutes.append((time.monotonic() - begin) / 60)
        checkpoint = str(run / "checkpoints" / "last.ckpt")
    options = [*cell.stages[-1], *cell.test, "--ckpt_path", checkpoint]
    options = [word.replace("{previous}", checkpoint) for word in options]
    run = _program(
        ["test", *options], f"{cell.folder}/test", cell.seed, place / "test.log", threads
    )
    metrics = json.loads((run / "test.json").read_text())["metrics"]
    result = {
        "model": cell.model,
        "seed": cell.seed,
        "asked": asked,
        "checkpoint": checkpoint,
        "minutes": minutes,
        "threads": threads,
        "metrics": metrics,
    }
    partial = cell.result.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1))
    os.replace(partial, cell.result)
    return result


def _program(arguments: list[str], name: str, seed: int, log: Path, threads: int) -> Path:
    """Run `mhmoe-mm`; the folder that it wrote to."""
    command = [*PROGRAM, *arguments, "--name", name, "--seed_everything", str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        status = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if status.returncode:
        last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"{arguments[0]} of {name} failed; {log} ends: {last}")
    return RUNS / name / "version_0"


def table(comparison: Comparison, results: Sequence[dict[str, Any]]) -> Table:
    """Mean of each model over its seeds, with the lowest and the highest."""
    shown = Table(title=f"{comparison.name}: mean over seeds (lowest to highest)")
    shown.add_column("model")
    shown.add_column("seeds", justify="right")
    for heading in comparison.metrics.values():
        shown.add_column(heading, justify="right")
    shown.add_column("minutes", justify="right")
    for model in comparison.models:
        mine = [result for result in results if result["model"] == model]
        if not mine:
            continue
        row = [model, str(len(mine))]
        for metric in comparison.metrics:
            row.append(_spread([result["metrics"].get(metric) for result in mine]))
        minutes = statistics.mean(sum(result["minutes"]) for result in mine)
        shown.add_row(*row, f"{minutes:.1f}")
    if comparison.chance:
        chance = [_figure(comparison.chance.get(metric)) for metric in comparison.metrics]
        shown.add_row("chance", "", *chance, "")
    return shown


def _spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    mean, low, high = statistics.mean(known), min(known), max(known)
    return f"{mean:.4f} ({low:.4f} to {high:.4f})" if len(known) > 1 else f"{mean:.4f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("comparison", type=Path, help="a file of conf/comparisons")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the file")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--jobs", type=int, default=1, help="cells trained at a time (1)")
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
    todo = cells(comparison, given.seeds or comparison.seeds, models)
    threads = max(1, (os.cpu_count() or 1) // given.jobs)
    results, failed = [], 0
    with ThreadPoolExecutor(given.jobs) as pool:
        running = {pool.submit(carry_out, cell, threads): cell for cell in todo}
        for done in as_completed(running):
            cell = running[done]
            try:
                results.append(done.result())
            except RuntimeError as error:
                failed += 1
                print(f"{cell.model}, seed {cell.seed}: {error}", file=sys.stderr)
                continue
            figures = results[-1]["metrics"]
            line = "  ".join(f"{name} {_figure(figures.get(name))}" for name in comparison.metrics)
            print(f"{cell.model}, seed {cell.seed}: {line}", flush=True)
    Console().print(table(comparison, results))
    folder = RUNS / comparison.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    print(f"{folder / 'results.json'} has the figures; {len(results)} runs, {failed} failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
