"""How long a sparse layer takes, beside a dense net of equal multiply-adds, peers and a plain loop.
On a CUDA device that is our layer with either backend, grouped ("ours") and Triton.

    python -m tools.benchmarks.layer --dtype bf16 --case d512-h2-E8-k2

One run measures all engines in turn, so that each sees the same machine; the figure of an engine
is the median of forward + backward of one whole layer (router, dispatch, experts, combine, head
and merge maps). Ratios are to the dense net, whose own is 1: the ceiling. `--clock cpu` counts the
time of the processor instead, for a machine that others use too.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mhmoe_mm.callbacks.freed_memory import KeepFreedMemory
from tools.benchmarks.cases import Case
from tools.benchmarks.engines import DENSE, DTYPES, LOOP, NEEDS_CUDA, TRITON, made, ours
from tools.benchmarks.options import parsed, parser_of
from tools.benchmarks.peers import Unfit

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SLOW = 4.0
"""An engine that takes so many times as long as the dense net is given few turns."""


class Figure(NamedTuple):
    """What was measured of an engine; a reason where nothing was."""

    ms: float = float("nan")
    spread: float = float("nan")
    """Between the first and the third quartile, as a share of the median."""
    reason: str = ""


def timed(layer: nn.Module, x: Tensor, grad: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one forward and backward."""
    layer.zero_grad()
    x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    y = layer(x)
    (y[0] if isinstance(y, tuple) else y).backward(grad)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(
    case: Case,
    engines: Sequence[str],
    dtype: torch.dtype,
    device: str,
    block: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Figure]:
    """Every engine on one case."""
    torch.manual_seed(0)
    x = torch.randn(1, case.tokens, case.shape.dim, device=device, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    layers: dict[str, nn.Module] = {}
    found: dict[str, Figure] = {}
    seconds: dict[str, list[float]] = {}
    for name in engines:
        try:
            layer = made(name, case, block).to(device, dtype)
            timed(layer, x, grad, clock)  # warm-up
            seconds[name] = [timed(layer, x, grad, clock)]
            layers[name] = layer
        except Unfit as reason:
            found[name] = Figure(reason=str(reason))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            found[name] = Figure(reason=f"fails: {lines[0]}")
    floor = seconds[DENSE][0]
    few = {name for name, first in seconds.items() if first[0] > SLOW * floor}
    for turn in range(1, repeats):
        for name, layer in layers.items():
            if name not in few or turn < 3:
                seconds[name].append(timed(layer, x, grad, clock))
    gc.collect()
    return {name: found.get(name) or _figure(seconds[name]) for name in engines}


def _figure(seconds: list[float]) -> Figure:
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median,) * 3
    return Figure(1e3 * median, (high - low) / median)


def parse(argv: list[str] | None) -> argparse.Namespace:
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser = parser_of("layer", "How long a sparse layer takes.", usual)
    parser.add_argument("--no-loop", action="store_true", help="leave out one expert at a time")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--keep-memory", action="store_true", help="let glibc keep freed blocks")
    parser.add_argument("--png", type=Path, help="also draw them")
    args = parsed(parser, argv)
    if args.repeats < 1:
        parser.error("--repeats is 1 or more")
    if args.device != "cpu" and args.clock == "cpu":
        parser.error("--clock cpu does not see what a GPU does")
    return args


def table_of(rows: Sequence[tuple[Case, dict[str, Figure]]], engines: Sequence[str]) -> Table:
    """Times of the dense net, and what the others take of it."""
    table = Table("case", "dense ms", *(f"{name} x" for name in engines[1:]))
    for column in table.columns[1:]:
        column.justify = "right"
    for case, figures in rows:
        floor = figures[DENSE]
        cells = [
            f.reason.split(":")[0] if f.reason else f"{f.ms / floor.ms:.2f} ±{f.spread:.0%}"
            for f in (figures[name] for name in engines[1:])
        ]
        table.add_row(case.name, f"{floor.ms:.1f} ±{floor.spread:.0%}", *cells)
    return table


def main(argv: list[str] | None = None) -> int:
    """Print the table; write the figures where asked."""
    args = parse(argv)
    if args.keep_memory:
        KeepFreedMemory().keep()
    tell = Console(width=None if sys.stdout.isatty() else 160)
    engines = [DENSE, *ours(args.device), *args.peers, *([] if args.no_loop else [LOOP])]
    told = f"{args.dtype} on {args.device}, {torch.get_num_threads()} threads, torch"
    tell.print(f"{told} {torch.__version__}, {args.clock} time; x: that of the dense net is 1")
    if TRITON not in engines:
        tell.print(NEEDS_CUDA)
    rows: list[tuple[Case, dict[str, Figure]]] = []
    for case in args.cases:
        figures = measure(
            case, engines, DTYPES[args.dtype], args.device, args.block, args.repeats,
            CLOCKS[args.clock],
        )  # fmt: skip
        rows.append((case, figures))
        for name, figure in figures.items():
            if figure.reason:
                tell.print(f"{case.name}, {name}: {figure.reason}", soft_wrap=True)
    tell.print(table_of(rows, engines))
    if args.json:
        content = [
            {"case": c.name, **asdict(c.shape), "tokens": c.tokens}
            | {name: _plain(figure) for name, figure in figures.items()}
            for c, figures in rows
        ]
        args.json.write_text(json.dumps({"told": told, "rows": content}, indent=1) + "\n")
    if args.png:
        draw(rows, engines, told, args.png)
    return 0


def _plain(figure: Figure) -> dict[str, float | str]:
    if figure.reason:
        return {"reason": figure.reason}
    return {"ms": figure.ms, "spread": figure.spread}


def draw(
    rows: Sequence[tuple[Case, dict[str, Figure]]], engines: Sequence[str], told: str, path: Path
) -> None:
    """A group of bars a case; what fails has none."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(2.4 + 1.3 * len(rows), 4.2), layout="constrained")
    axes = picture.subplots()
    names = engines[1:]
    for number, name in enumerate(names):
        ratios = [figures[name].ms / figures[DENSE].ms for _, figures in rows]
        places = [
            place + (number - len(names) / 2 + 0.5) * 0.8 / len(names) for place in range(len(rows))
        ]
        axes.bar(places, ratios, 0.8 / len(names), label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel("time, a dense net of equal multiply-adds is 1")
    axes.set_xticks(
        range(len(rows)), [case.name.replace("-", "\n", 1) for case, _ in rows], fontsize=7
    )
    axes.set_title(told, fontsize=9)
    axes.legend(fontsize=8)
    picture.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
