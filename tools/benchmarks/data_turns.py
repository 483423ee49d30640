"""A turn of a pipeline, and what many turns say.

Of an epoch the first batches are left out, in which helpers start and run ahead, and the last two,
at which they run dry. Processor time is that of this process and of its workers, so that it counts
what is copied between them and does not count other programs.
"""

import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.benchmarks.data_pipelines import PIPELINES, Setting, Work
from tools.benchmarks.turns import middle

WARM_UP, TAIL = 6, 2
"""Batches at either end of an epoch that are not timed."""
FEWEST = WARM_UP + TAIL + 2
"""Batches that an epoch must have."""


class Turn(NamedTuple):
    """What one turn took a sample, in seconds."""

    wall: float
    cpu: float


class Figure(NamedTuple):
    """What was measured of a pipeline in a setting."""

    name: str
    setting: Setting
    samples_per_s: float
    spread: float
    """Between the first and the third quartile, as a share of the median."""
    cpu_ms: float
    """Processor time a sample, all processes together; the median."""


def take_turn(name: str, setting: Setting, work: Work) -> Turn:
    """One epoch."""
    total = len(work.corpus.samples) // work.batch_size
    last = total - TAIL
    batches: Any = PIPELINES[name].batches(work, setting)
    wall = cpu = 0.0
    for number, _ in enumerate(batches, start=1):
        if number == WARM_UP:
            wall, cpu = time.perf_counter(), processor_time()
        elif number == last:
            wall, cpu = time.perf_counter() - wall, processor_time() - cpu
            break
    batches.close()
    gc.collect()
    samples = (last - WARM_UP) * work.batch_size
    return Turn(wall / samples, cpu / samples)


def processor_time() -> float:
    """Seconds of this process and of those of its children that are alive."""
    children = [child.pid for child in multiprocessing.active_children()]
    return time.process_time() + sum(_time_of(pid) for pid in children if pid)


def _time_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no Linux, or the child has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(
    asked: Sequence[tuple[str, Setting]], work: Work, repeats: int, clock: str
) -> list[Figure]:
    """Every pipeline in every setting in turn, `repeats` times, each round in another order;
    `clock` is a field of `Turn`.
    """
    turns: dict[tuple[str, Setting], list[Turn]] = {each: [] for each in asked}
    for number in range(repeats):
        start = number * len(asked) // repeats
        for name, setting in [*asked[start:], *asked[:start]]:
            turns[name, setting].append(take_turn(name, setting, work))
    return [_figure(name, setting, found, clock) for (name, setting), found in turns.items()]


def _figure(name: str, setting: Setting, turns: list[Turn], clock: str) -> Figure:
    median, spread = middle([getattr(turn, clock) for turn in turns])
    cpu = statistics.median(turn.cpu for turn in turns)
    return Figure(name, setting, 1 / median, spread, 1e3 * cpu)
