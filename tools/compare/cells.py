"""One model with one seed: trained, tested, and kept when it is finished."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mhmoe_mm.command_line.sources import Sources
from mhmoe_mm.storage.whole import write_text
from tools.compare.comparison import Comparison, folder_name
from tools.compare.program import Place, last_line, start

MEASURED = ("--trainer.callbacks+", "mhmoe_mm.callbacks.resources.Resources")
"""What every training gets besides, so that its time and memory are known."""


class CellError(Exception):
    """A command failed; the message says which log tells why."""


@dataclass(frozen=True)
class Cell:
    """One model with one seed.

    Args:
        model: as the table calls it.
        seed: of the weights and the data.
        stages: options of each `fit`.
        test: further options of the test.
        runs: the folder of all runs.
        name: the folder below it.
    """

    model: str
    seed: int
    stages: tuple[tuple[str, ...], ...]
    test: tuple[str, ...]
    runs: Path
    name: str

    @property
    def result(self) -> Path:
        """Written last: a cell that has it is finished."""
        return self.runs / self.name / "result.json"

    @property
    def last_stage(self) -> Path:
        """The folder of the last training."""
        return self.runs / self.name / f"stage-{len(self.stages)}" / "version_0"


def model_folder(runs: Path, comparison: str, model: str) -> Path:
    """Where everything of a model lies."""
    return runs / comparison / folder_name(model)


def cells(
    comparison: Comparison, seeds: Sequence[int], models: Sequence[str], runs: Path
) -> list[Cell]:
    """What is to be trained: all models with the first seed, then all with the next."""
    return [
        Cell(
            model,
            seed,
            comparison.models[model],
            comparison.test,
            runs,
            f"{comparison.name}/{folder_name(model)}/seed-{seed}",
        )
        for seed in seeds
        for model in models
    ]


def asked(cell: Cell) -> dict[str, Any]:
    """What a result depends on."""
    words = [word for stage in (*cell.stages, cell.test) for word in stage]
    return {
        "stages": [list(stage) for stage in cell.stages],
        "test": list(cell.test),
        "files_sha256": files_sha256(words),
    }


def files_sha256(words: Sequence[str]) -> str:
    """Of what the YAML files say that the options name, comments apart."""
    texts = json.dumps([yaml.safe_load(text.content) for text in Sources(words).texts])
    return hashlib.sha256(texts.encode()).hexdigest()


def finished(cell: Cell) -> dict[str, Any] | None:
    """The result that is there, if it is of the same options and files."""
    if not cell.result.exists():
        return None
    there = json.loads(cell.result.read_text())
    return there if there["asked"] == asked(cell) else None


def carry_out(cell: Cell, where: Place) -> dict[str, Any]:
    """Train and test a cell from the beginning; its result.

    Raises:
        CellError: a command failed.
    """
    folder = cell.runs / cell.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = asked(cell)
    checkpoint, minutes, resources = "", [], []
    for number, stage in enumerate(cell.stages, start=1):
        options = [word.replace("{previous}", checkpoint) for word in stage]
        begin = time.monotonic()
        run = _program(cell, "fit", [*options, *MEASURED], f"stage-{number}", where)
        minutes.append((time.monotonic() - begin) / 60)
        measured = run / "resources.json"
        resources.append(json.loads(measured.read_text()) if measured.exists() else None)
        checkpoint = str(run / "checkpoints" / "last.ckpt")
    options = [word.replace("{previous}", checkpoint) for word in (*cell.stages[-1], *cell.test)]
    options += ["--ckpt_path", checkpoint]  # which comes before what a model starts from
    run = _program(cell, "test", options, "test", where)
    result = {
        "model": cell.model,
        "seed": cell.seed,
        "asked": begun,
        "checkpoint": checkpoint,
        "minutes": minutes,
        "threads": where.threads,
        "resources": resources,
        "metrics": json.loads((run / "test.json").read_text())["metrics"],
    }
    write_text(cell.result, json.dumps(result, indent=1))
    return result


def _program(cell: Cell, command: str, options: list[str], part: str, where: Place) -> Path:
    """Run `mhmoe-mm`; the folder that it wrote to."""
    name = f"{cell.name}/{part}"
    own = ["--name", name, "--seed_everything", str(cell.seed)]
    own += ["--trainer.default_root_dir", str(cell.runs)]
    log = cell.runs / cell.name / f"{part}.log"
    if start([command, *options, *own], log, where).wait():
        raise CellError(f"{command} of {name} failed; {log} ends: {last_line(log)}")
    return cell.runs / name / "version_0"
