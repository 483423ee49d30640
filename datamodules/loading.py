"""Loaders: batches in order, built in this process, in its threads, or in worker processes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from datamodules.errors import Ledger
from datamodules.members import ShardError
from datamodules.order import Position, Schedule
from datamodules.steps import Loaded


@dataclass(frozen=True)
class Loading:
    """How batches are made; none of it changes what is in them, except `window`.

    Args:
        workers: processes that build batches; 0 for none.
        threads: without workers, threads of this process that build batches ahead; 0 for none.
        pin_memory: with workers, hand out batches in pinned memory.
        window: shards whose samples are shuffled among each other.
        cache: folder for shards that are fetched from URLs.
    """

    workers: int = 0
    threads: int = 1
    pin_memory: bool = False
    window: int = 8
    cache: str = "~/.cache/mhmoe-mm/shards"

    def __post_init__(self):
        if min(self.workers, self.threads) < 0 or self.window < 1:
            raise ValueError(
                "loading.workers and loading.threads must be 0 or more and loading.window at least "
                f"1, got {self.workers}, {self.threads} and {self.window}."
            )


class Progress:
    """Where training is in the data; to Lightning it is the sampler, which is told the epoch."""

    def __init__(self):
        self.epoch = 0
        self.start = 0
        """Samples of this epoch that were consumed before this run began."""
        self.handed_out = 0
        """Batches handed out in this epoch by this run."""

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch at its first sample; the epoch that was resumed goes on where it was."""
        if epoch != self.epoch:
            self.resume(Position(epoch, 0))

    def resume(self, position: Position) -> None:
        """Go on from a position."""
        self.epoch, self.start = position
        self.handed_out = 0


class StepLoader:
    """Training batches of one rank, from where `progress` is to the end of its epoch.

    Its length is that of a whole epoch, also in one that was resumed: Lightning counts the batches
    of an epoch from its beginning. With a length, Lightning does not read ahead.

    Args:
        run: positions -> batches in that order.
        schedule: the positions of an epoch.
        progress: where to begin.
        ledger: counts what failed.
        report: called with the last batch of each epoch, to show what failed.
    """

    def __init__(
        self,
        run: Callable[[list[Position]], Iterator[Loaded]],
        schedule: Schedule,
        progress: Progress,
        ledger: Ledger,
        report: Callable[[], None],
    ):
        self.run = run
        self.schedule = schedule
        self.sampler = progress
        self.ledger = ledger
        self.report = report

    def __len__(self) -> int:
        return self.schedule.num_steps()

    def __iter__(self) -> Iterator[Any]:
        # A generator runs at the first next(): Lightning calls iter() before it sets the epoch.
        progress = self.sampler
        progress.handed_out = 0
        positions = self.schedule.positions(progress.epoch, progress.start)
        for step, batch in enumerate(checked(self.run(positions), self.ledger), start=1):
            if step == len(positions):
                self.report()  # now, for Lightning does not ask for what comes after the last one
            progress.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Empty: the data module keeps the position. Without it Lightning would warn."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do: the data module keeps the position."""


class EvaluationLoader:
    """Batches of one rank for a pass over all samples.

    Args:
        run: step numbers -> batches in that order.
        num_steps: batches of this rank.
        num_rows: rows over all ranks; None where a batch has parts of different lengths.
        ledger: counts what failed.
        report: called with the last batch, to show what failed.
    """

    def __init__(
        self,
        run: Callable[[range], Iterator[Loaded]],
        num_steps: int,
        num_rows: int | None,
        ledger: Ledger,
        report: Callable[[], None],
    ):
        self.run = run
        self.num_steps = num_steps
        self.num_rows = num_rows
        self.ledger = ledger
        self.report = report

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[Any]:
        batches = checked(self.run(range(self.num_steps)), self.ledger)
        for step, batch in enumerate(batches, start=1):
            if step == self.num_steps:
                self.report()
            yield batch


def checked(batches: Iterator[Loaded], ledger: Ledger) -> Iterator[Any]:
    """The batches, with failures counted; raises `ShardError` when there were too many."""
    for batch, failures in batches:
        ledger.add(failures)
        if batch is None:
            raise ShardError(f"No usable sample was found: {ledger.summary()}.")
        yield batch


def run_steps(steps: Any, loading: Loading, plan: Iterable[Any]) -> Iterator[Loaded]:
    """`steps[item] for item in plan`, ahead of time where there are workers or threads."""
    if loading.workers:
        return iter(worker_loader(steps, loading, sampler=plan))
    if loading.threads:
        return _run_in_threads(steps, loading.threads, iter(plan))
    return map(steps.__getitem__, plan)


def worker_loader(steps: Any, loading: Loading, sampler: Iterable[Any] | None) -> DataLoader:
    """A DataLoader that passes whole batches on as they are."""
    return DataLoader(
        steps,
        batch_size=None,
        sampler=sampler,
        num_workers=loading.workers,
        collate_fn=cast(Any, _as_it_is),
        pin_memory=loading.pin_memory,
        # Its own generator: a new loader would otherwise draw from the global one, and a resumed
        # run would see other random numbers than one that was not interrupted.
        generator=torch.Generator(),
    )


def _run_in_threads(steps: Any, threads: int, plan: Iterator[Any]) -> Iterator[Loaded]:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    try:
        waiting = deque(pool.submit(steps.__getitem__, item) for item in islice(plan, threads + 1))
        while waiting:
            loaded = waiting.popleft().result()
            waiting.extend(pool.submit(steps.__getitem__, item) for item in islice(plan, 1))
            yield loaded
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _as_it_is(loaded: Loaded) -> Loaded:
    return loaded
