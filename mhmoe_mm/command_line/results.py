"""What `validate` and `test` found: a table for people, a JSON file for programs."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table

from mhmoe_mm.callbacks.run_folder import run_folder
from mhmoe_mm.callbacks.skipped_samples import skipped_samples
from mhmoe_mm.command_line.weights import described
from mhmoe_mm.storage.whole import write_text

GROUPS = ("objectives", "task", "experts")


class Results(Callback):
    """Prints the figures and writes them to `validate.json` or `test.json` in the run's folder.

    {"metrics": {"test/accuracy": 0.7543859481811523, ...},       as they were logged
     "checkpoint": {"path": "...", "sha256": "..."},              null: weights as they started
     "skipped": {"shards/00000.tar/000000003": "decode", ...}}    samples that could not be read

    A figure that is not finite is null.

    Args:
        command: `validate` or `test`.
        weights: what the model was loaded from.
    """

    def __init__(self, command: str, weights: Path | None):
        self.command = command
        self.weights = weights

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if lacking := getattr(pl_module, "not_loaded", []):
            rank_zero_warn(
                f"{lacking[0]} (1 of {len(lacking)}) is not in {self.weights}: these are figures "
                "of weights as they start"
            )
        elif self.weights is None:
            rank_zero_warn("no --ckpt_path was given: these are figures of weights as they start")

    on_validation_start = on_test_start

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder, skipped = run_folder(trainer), skipped_samples(trainer)
        if not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        objectives = getattr(pl_module, "objectives", {})
        Console().print(table(metrics, objectives, title=self.command))
        if skipped:
            print(f"{len(skipped)} samples could not be read")
        if folder is None:
            return
        content = {
            "metrics": {name: x if math.isfinite(x) else None for name, x in metrics.items()},
            "checkpoint": described(self.weights),
            "skipped": skipped,
        }
        path = folder / f"{self.command}.json"
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_text(path, text)
        print(f"all digits are in {path}", flush=True)

    on_validation_end = on_test_end


def table(metrics: Mapping[str, float], objectives: Mapping[str, Any], title: str) -> Table:
    """The figures, those of a kind together: objectives, the task's own, experts."""
    shown = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
    shown.add_column()
    shown.add_column(justify="right", no_wrap=True)
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in metrics:
        groups[group_of(name, objectives)].append(name)
    for number, (_, names) in enumerate(item for item in groups.items() if item[1]):
        if number:
            shown.add_row()
        for name in sorted(names, key=in_order):
            shown.add_row(name, figure(metrics[name]))
    return shown


def group_of(name: str, objectives: Mapping[str, Any]) -> str:
    """Which of `GROUPS` a figure belongs to, by its name: `STAGE/NAME`."""
    own = name.partition("/")[2]
    if own.startswith("experts/"):
        return "experts"
    of = ("", "_accuracy", "_perplexity")
    mine = {"loss", *(f"{objective}{what}" for objective in objectives for what in of)}
    return "objectives" if own in mine else "task"


def in_order(name: str) -> list[tuple[str, int]]:
    """By what to sort names, so that `recall_at_10` follows `recall_at_5`."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D+)(\d*)", name)]


def figure(value: float) -> str:
    """Four decimals, fewer where the number is large, more where it is small."""
    size = abs(value)
    if size and size < 0.001:
        return f"{value:.3g}"
    decimals = next((d for bound, d in ((10, 4), (100, 3), (1000, 2)) if size < bound), 0)
    return f"{value:,.{decimals}f}"
