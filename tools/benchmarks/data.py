"""How many samples a second a data pipeline makes, beside those that others would use.

    python -m tools.benchmarks.data --images 1280 --side 256 256 --json data.json --png data.png

The samples are JPEGs with captions, made on the spot. Every pipeline ends with a normalised batch
and the ids of its captions (`data_pipelines.py` has them all); they take turns, so that each sees
the same machine. Ratios are to plain webdataset with PIL at the most workers that are measured, and
to decoding alone in one thread. One that is not installed is left out with a sentence. `--clock
cpu` counts the processor's time, of workers too, where others work on the machine.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from datamodules.transforms import View
from mhmoe_mm.callbacks.freed_memory import KeepFreedMemory
from tools.benchmarks.data_corpus import Corpus, make_corpus
from tools.benchmarks.data_pipelines import (
    DECODE,
    OURS,
    PIPELINES,
    REDUCED,
    REFERENCE,
    Setting,
    Work,
    missing,
    settings_of,
)
from tools.benchmarks.data_turns import FEWEST, Figure, Turn, measure

ROW = ("samples/s", "spread", "x reference", "of decoding", "CPU ms")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.data",
        description="How many samples a second a data pipeline makes, beside peers.",
    )
    add = parser.add_argument
    add("--images", type=int, default=1280, help="samples of the corpus, and of an epoch (1280)")
    add("--side", type=int, nargs=2, default=(256, 256), metavar=("WIDTH", "HEIGHT"),
        help="of the JPEGs, in pixels (256 256)")  # fmt: skip
    add("--size", type=int, default=224, help="height and width of what a network reads (224)")
    add("--batch-size", type=int, default=64)
    add("--workers", type=int, nargs="+", default=[0, 1, 2], help="processes (0 1 2)")
    add("--threads", type=int, nargs="+", default=[1, 2],
        help="of those that work in threads of this process (1 2)")  # fmt: skip
    add("--only", nargs="+", choices=PIPELINES, metavar="NAME",
        help=f"these beside the two compared with; there are: {', '.join(PIPELINES)}")  # fmt: skip
    add("--repeats", type=int, default=5, help="turns of each (5)")
    add("--clock", choices=Turn._fields, default="wall",
        help="cpu: a second is one of a processor, for a machine that others use too")  # fmt: skip
    add("--keep-memory", action="store_true",
        help="let glibc keep freed blocks, as conf/trainer/cpu.yaml does")  # fmt: skip
    add("--json", type=Path, help="also write the figures to this file")
    add("--png", type=Path, help="also draw them")
    args = parser.parse_args(argv)
    if args.repeats < 1 or args.batch_size < 1 or min(args.side) < 1 or args.size < 1:
        parser.error("--repeats, --batch-size, --side and --size are 1 or more")
    if min(args.workers) < 0 or min(args.threads) < 0:
        parser.error("--workers and --threads are 0 or more")
    if args.images < FEWEST * args.batch_size:
        parser.error(
            f"--images {args.images}: an epoch must have {FEWEST} batches of {args.batch_size}, "
            f"that is {FEWEST * args.batch_size} images"
        )
    return args


def asked_for(args: argparse.Namespace) -> list[tuple[str, Setting]]:
    """What is to be measured, the two that others are compared with first."""
    names = [name for name in PIPELINES if args.only is None or name in args.only]
    found = [(DECODE, Setting(threads=1)), (REFERENCE, reference_of(args.workers))]
    for name in names:
        if name == REDUCED and min(args.side) < 2 * args.size:
            continue  # no crop is large enough
        if not missing(name):
            found += [(name, setting) for setting in settings_of(name, args.workers, args.threads)]
    return list(dict.fromkeys(found))


def reference_of(workers: Sequence[int]) -> Setting:
    """Plain webdataset with the most workers."""
    return Setting(workers=max(workers))


def rows_of(figures: Sequence[Figure], reference: Setting) -> list[dict[str, str | float]]:
    """Figures with their ratios, as plain values."""
    speed = {(f.name, f.setting): f.samples_per_s for f in figures}
    plain, ceiling = speed[REFERENCE, reference], speed[DECODE, Setting(threads=1)]
    return [
        {
            "pipeline": f.name,
            "setting": str(f.setting),
            "samples/s": f.samples_per_s,
            "spread": f.spread,
            "x reference": f.samples_per_s / plain,
            "of decoding": f.samples_per_s / ceiling,
            "CPU ms": f.cpu_ms,
        }
        for f in sorted(figures, key=lambda f: list(PIPELINES).index(f.name))
    ]


def table_of(rows: Sequence[dict[str, str | float]]) -> Table:
    table = Table("pipeline", "setting", *ROW)
    for column in table.columns[2:]:
        column.justify = "right"
    forms = ("{:,.0f}", "±{:.0%}", "{:.2f}", "{:.2f}", "{:.2f}")
    for row in rows:
        cells = [form.format(row[name]) for form, name in zip(forms, ROW, strict=True)]
        table.add_row(str(row["pipeline"]), str(row["setting"]), *cells)
    return table


def told_of(args: argparse.Namespace, corpus: Corpus) -> str:
    mean = sum(len(image) for image, _ in corpus.samples) / len(corpus.samples)
    width, height = corpus.side
    return (
        f"{args.images} JPEGs of {width} x {height}, {mean / 1000:.0f} kB each, to batches of "
        f"{args.batch_size} x 3 x {args.size} x {args.size}; {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} torch threads, torch {torch.__version__}, "
        f"{args.clock} time"
    )


def main(argv: list[str] | None = None) -> int:
    """Print the table; write the figures where asked."""
    args = parse(argv)
    tell = Console(width=None if sys.stdout.isatty() else 140)
    if args.keep_memory:
        KeepFreedMemory().keep()
    asked = asked_for(args)
    reference = reference_of(args.workers)
    for name in args.only or PIPELINES:
        if lacks := missing(name):
            tell.print(f"{name} is left out: {' and '.join(lacks)} is not installed.")
    with tempfile.TemporaryDirectory(prefix="mhmoe-data-") as folder:
        corpus = make_corpus(Path(folder) / "shards", args.images, *args.side)
        told = told_of(args, corpus)
        tell.print(told, soft_wrap=True)
        view = View(size=args.size, patch=1)
        work = Work(corpus, Path(folder), view, args.batch_size)
        figures = measure(asked, work, args.repeats, args.clock)
    rows = rows_of(figures, reference)
    tell.print(f"reference: {REFERENCE}, {reference}; decoding: ours alone, 1 thread")
    tell.print(table_of(rows))
    if args.json:
        args.json.write_text(json.dumps({"told": told, "rows": rows}, indent=1) + "\n")
    if args.png:
        draw(rows, told, args.png)
    return 0


def draw(rows: Sequence[dict[str, str | float]], told: str, path: Path) -> None:
    """A bar for each row, ours in another colour, decoding as a line."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(8, 1.2 + 0.26 * len(rows)), layout="constrained")
    axes = picture.subplots()
    colours = ["tab:orange" if row["pipeline"] in (OURS, REDUCED) else "tab:gray" for row in rows]
    speeds = [float(row["samples/s"]) for row in rows]
    axes.barh(range(len(rows)), speeds, color=colours)
    axes.axvline(speeds[0], color="black", linewidth=1, linestyle=":")
    labels = [f"{row['pipeline']}, {row['setting']}" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("samples/s")
    axes.set_title(told, fontsize=7)
    picture.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
