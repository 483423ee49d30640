"""The demo: from nothing to two small pretrained models, one multi-head and one plain, compared.

    python -m tools.quickstart

Draws the shapes corpus, trains a tokenizer and a codebook of patches on it, pretrains a multi-head
MoE and a sparse MoE of equal multiply-adds on the CPU, prints what each has learned and how many
of its experts work, and writes a page that shows where tokens went.
"""

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from datamodules.shards import ShardDataModule
from mhmoe_mm.batches import IGNORED
from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from mhmoe_mm.callbacks.expert_report import Row
from mhmoe_mm.callbacks.expert_stats import ALL
from mhmoe_mm.command_line.program import build
from mhmoe_mm.metrics.prediction_mean import PredictionMean
from mhmoe_mm.moe.budget import shape_of
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.tasks.base import Task
from tools import build_codebook, train_tokenizer
from tools.build_shards.cli import main as build_shards
from tools.expert_report.page import write_page
from tools.expert_report.run import Wanted, contents_of

NETS = {"MH-MoE": "conf/nets/tiny.yaml", "SparseMoE": "conf/nets/tiny_smoe.yaml"}
STEPS, LOOKS = 500, 5
"""Optimizer steps of each, and validations on the way, each with a checkpoint."""
REPORT = Path("runs/quickstart_experts.html")


class Result(NamedTuple):
    """What one model came to."""

    parameters: int
    layer_macs: int
    start: dict[str, float]
    end: dict[str, float]
    experts: list[Row]
    commonest: float
    """Share of the commonest masked token: what always answering it would score."""
    minutes: float
    folder: Path


def prepare(data: Path) -> None:
    """The corpus, its tokenizer and its codebook; what is there already stays."""
    tokenizer, codebook = data / "tokenizer.json", data / "codebook.safetensors"
    patches = ["--patch-size", "8", "--codes", "128", "--image-size", "32", "--out"]
    steps: list[tuple[Path, Callable[[list[str]], int], list[str]]] = [
        (data / "card.json", build_shards, ["shapes", "--out", str(data)]),
        (
            tokenizer,
            train_tokenizer.main,
            [str(data), "--vocab-size", "512", "--out", str(tokenizer)],
        ),
        (codebook, build_codebook.main, [str(data), *patches, str(codebook)]),
    ]
    for made, program, arguments in steps:
        if not made.exists() and (status := program(arguments)):
            sys.exit(status)


def options_of(run: str, net: str, data: Path) -> list[str]:
    """Of `mhmoe-mm fit`: pretraining on this data, under this name."""
    paths = {"tokenizer": data / "tokenizer.json"}
    for split in ("train", "val"):
        paths |= {f"{split}.{part}.shards": data / split for part in ("pair", "image", "text")}
    argv = ["--config", "conf/trainer/cpu.yaml", "--config", "conf/runs/shapes.yaml"]
    argv += ["--name", run, "--model.net", net]
    argv += ["--model.image_target.path", str(data / "codebook.safetensors")]
    for key, path in paths.items():
        argv += [f"--data.{key}", str(path)]
    return argv


def pretrain(name: str, net: str, data: Path, steps: int) -> Result:
    """Pretrain one net as `mhmoe-mm fit` would; validate before and after."""
    argv = ["fit", *options_of(f"quickstart_{name.lower().replace('-', '_')}", net, data)]
    every = steps // LOOKS if steps % LOOKS == 0 else steps  # the last step is validated
    argv += ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(every)]
    argv += ["--checkpoint.save_top_k", "-1"]
    command = build(argv, Task)
    trainer, task, module = command.trainer, command.model, command.datamodule
    start = untrained(task, module)
    begin = time.monotonic()
    command.execute()
    minutes = (time.monotonic() - begin) / 60
    layers = [m for m in task.net.modules() if isinstance(m, MHMoE)]
    layers = layers or [m for m in task.net.modules() if isinstance(m, SparseMoE)]
    return Result(
        parameters=sum(p.numel() for p in task.parameters()),
        layer_macs=int(shape_of(layers[0]).active_macs),
        start=start,
        end={key: float(value) for key, value in trainer.callback_metrics.items()},
        experts=next(c for c in trainer.callbacks if isinstance(c, ExpertActivation)).summary(),
        commonest=commonest_token_share(module),
        minutes=minutes,
        folder=Path(trainer.log_dir),
    )


@torch.no_grad()
def untrained(task: Task, data: ShardDataModule) -> dict[str, float]:
    """Validation losses before the first step."""
    means: dict[str, PredictionMean] = defaultdict(PredictionMean)
    task.eval()
    for batch in data.evaluation_loader("val"):
        for name, prediction in task.losses(batch).predictions.items():
            means[f"val/{name}"].update(prediction)
    task.train()
    return {name: float(mean.compute()["loss"]) for name, mean in means.items()}


def commonest_token_share(data: ShardDataModule) -> float:
    """Share of the commonest of the masked tokens of pairs in the validation split."""
    seen: Counter[int] = Counter()
    for batch in data.evaluation_loader("val"):
        seen.update(batch.pair.target[batch.pair.target != IGNORED].tolist())
    return max(seen.values()) / seen.total()


def report(results: dict[str, Result], console: Console) -> None:
    """The table, and where to look further."""
    table = Table(title="Masked pretraining on the shapes corpus, validation split")
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    each = list(results.values())

    def add(label: str, cells: Sequence[str]) -> None:
        table.add_row(label, *cells)

    add("parameters", [f"{r.parameters:,}" for r in each])
    add("multiply-adds per token and sparse layer", [f"{r.layer_macs:,}" for r in each])
    key = "val/pair_text_accuracy"
    add("masked text beside its image, accuracy", [f"{r.end[key]:.1%}" for r in each])
    add("  always the commonest token", [f"{r.commonest:.1%}" for r in each])
    add("masked text alone, accuracy", [f"{r.end['val/text_accuracy']:.1%}" for r in each])
    for key, label in (("val/image", "alone"), ("val/pair_image", "beside its text")):
        add(
            f"masked image {label}, nats per patch",
            [f"{r.start[key]:.2f} -> {r.end[key]:.2f}" for r in each],
        )
    for kind in ("image", "text"):
        add(f"experts active on {kind} tokens", [_activation(r.experts, kind) for r in each])
    add("  were routing random", [_random(r.experts) for r in each])
    add("minutes of training", [f"{r.minutes:.1f}" for r in each])
    console.print(table)
    for name, result in results.items():
        console.print(f"{name}: heatmap of its experts in {result.folder / 'experts.png'}")
    console.print("curves: tensorboard --logdir runs")


def show_experts(results: dict[str, Result], path: Path, console: Console) -> None:
    """The page that shows the experts of both, side by side."""
    contents = []
    for name, result in results.items():
        with console.status(name) as status:
            run = contents_of(
                result.folder, Wanted(), lambda text, n=name: status.update(f"{n}: {text}")
            )
        contents.append(run._replace(summary=run.summary._replace(name=name)))
    write_page(contents, path)
    console.print(f"where tokens went: open {path} in a browser")


def _activation(rows: list[Row], kind: str) -> str:
    mine = [row.activation for row in rows if row.kind == kind]
    return f"{sum(mine) / len(mine):.0%}"


def _random(rows: list[Row]) -> str:
    mine = [row.random_activation for row in rows if row.kind != ALL]
    return f"{sum(mine) / len(mine):.0%}"


def main(argv: list[str] | None = None) -> int:
    """Prepare, pretrain both, report."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.quickstart", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", type=Path, default=Path("data/shapes"), help="where data goes")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"training steps of each (default {STEPS})"
    )
    args = parser.parse_args(argv)
    console = Console()
    console.rule("1/4 data")
    prepare(args.data)
    results = {}
    for number, (name, net) in enumerate(NETS.items()):
        console.rule(f"2/4 pretraining {number + 1} of {len(NETS)}: {name}, {net}")
        results[name] = pretrain(name, net, args.data, args.steps)
    console.rule("3/4 what was learned")
    report(results, console)
    console.rule("4/4 where tokens went")
    show_experts(results, REPORT, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
