"""Engines that do the same work, timed in turns so that all see the same machine."""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tools.benchmarks.peers import Unfit

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SLOW = 4.0
"""An engine that takes so many times as long as the first is given few turns."""
FEW = 3

Run = Callable[[], float]
"""Does the work once; the seconds that it took."""


class Figure(NamedTuple):
    """What was measured of an engine; a reason where nothing was."""

    ms: float = float("nan")
    spread: float = float("nan")
    """Between the first and the third quartile, as a share of the median."""
    reason: str = ""

    def plain(self) -> dict[str, float | str]:
        """For a file."""
        return {"reason": self.reason} if self.reason else {"ms": self.ms, "spread": self.spread}


def in_turns(makers: Mapping[str, Callable[[], Run]], repeats: int) -> dict[str, Figure]:
    """Make every engine, warm it up, and time all of them in turns.

    Args:
        makers: by name; the first engine is what the others are compared with. One that raises
            `Unfit`, or that fails, is left out with its reason.
        repeats: turns; an engine that is slow is given fewer.
    """
    runs: dict[str, Run] = {}
    found: dict[str, Figure] = {}
    seconds: dict[str, list[float]] = {}
    for name, make in makers.items():
        try:
            run = make()
            run()  # warm-up
            seconds[name] = [run()]
            runs[name] = run
        except Unfit as reason:
            found[name] = Figure(reason=str(reason))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            found[name] = Figure(reason=f"fails: {lines[0]}")
    floor = seconds.get(next(iter(makers)), [float("nan")])[0]
    slow = {name for name, (first,) in seconds.items() if first > SLOW * floor}
    for turn in range(1, repeats):
        for name, run in runs.items():
            if name not in slow or turn < FEW:
                seconds[name].append(run())
    runs.clear()
    _give_back()
    return {name: found.get(name) or _figure(seconds[name]) for name in makers}


def _give_back() -> None:
    """Free what is not needed any more, and what `KeepFreedMemory` kept: the next case begins anew,
    and peers need much.
    """
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _figure(seconds: list[float]) -> Figure:
    median, spread = middle(seconds)
    return Figure(1e3 * median, spread)


def middle(times: Sequence[float]) -> tuple[float, float]:
    """The median, and what lies between the first and the third quartile, as a share of it."""
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else (median,) * 3
    return median, (high - low) / median


def console() -> Console:
    """Where tables are printed: as wide as the terminal, and wide enough for them in a file."""
    return Console(width=None if sys.stdout.isatty() else 160)


Rows = Sequence[tuple[str, Mapping[str, Figure]]]
"""By case: what was measured of every engine, the one that they are compared with first."""


def table_of(rows: Rows) -> Table:
    """Times of the first engine, and what the others take of it."""
    first, *others = rows[0][1]
    table = Table("case", f"{first} ms", *(f"{name} x" for name in others))
    for column in table.columns[1:]:
        column.justify = "right"
    for case, figures in rows:
        floor = figures[first]
        cells = [
            f.reason.split(":")[0] if f.reason else f"{f.ms / floor.ms:.2f} ±{f.spread:.0%}"
            for f in (figures[name] for name in others)
        ]
        table.add_row(case, f"{floor.ms:.1f} ±{floor.spread:.0%}", *cells)
    return table


def reasons(rows: Rows) -> list[str]:
    """A sentence for every engine that a case has no figure of."""
    return [
        f"{case}, {name}: {figure.reason}"
        for case, figures in rows
        for name, figure in figures.items()
        if figure.reason
    ]


def tell_all(
    tell: Console,
    rows: Rows,
    told: str,
    cases: Sequence[Mapping[str, Any]],
    json_file: Path | None,
    png_file: Path | None,
) -> None:
    """Print reasons and the table; write the files that are asked for.

    Args:
        rows: by case.
        told: how they were measured.
        cases: what the JSON says of each case besides.
    """
    for reason in reasons(rows):
        tell.print(reason, soft_wrap=True)
    tell.print(table_of(rows))
    if json_file:
        content = [
            {"case": name, **case, **{engine: f.plain() for engine, f in figures.items()}}
            for (name, figures), case in zip(rows, cases, strict=True)
        ]
        json_file.write_text(json.dumps({"told": told, "rows": content}, indent=1) + "\n")
    if png_file:
        draw(rows, told, png_file)


def draw(rows: Rows, title: str, path: Path) -> None:
    """A group of bars a case, as shares of the first engine's time; what fails has none."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(2.4 + 1.3 * len(rows), 4.2), layout="constrained")
    axes = picture.subplots()
    first, *names = rows[0][1]
    for number, name in enumerate(names):
        ratios = [figures[name].ms / figures[first].ms for _, figures in rows]
        places = [
            place + (number - len(names) / 2 + 0.5) * 0.8 / len(names) for place in range(len(rows))
        ]
        axes.bar(places, ratios, 0.8 / len(names), label=name)
    axes.axhline(1, color="black", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylabel(f"time; that of {first} is 1")
    axes.set_xticks(range(len(rows)), [case.replace("-", "\n", 1) for case, _ in rows], fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    picture.savefig(path, dpi=120)
