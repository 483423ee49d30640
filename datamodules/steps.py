"""The batches of a run as a table: a step's position in, a whole batch out.

Because a batch depends on its position and on nothing else, any number of workers and threads may
build batches in any order, and resuming is starting the list of positions further on.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset

from datamodules.errors import Failure, SampleError
from datamodules.order import (
    Order,
    Position,
    Schedule,
    evaluation_places,
    num_evaluation_steps,
    seeded,
)
from mhmoe_mm.batches import PretrainingBatch

EMPTY = PretrainingBatch(image=None, text=None, pair=None)


class Table(Protocol):
    """What a feed reads from: samples, or rows of them, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Any: ...


def pretraining_batch(parts: dict[str, Any]) -> PretrainingBatch:
    """Image, text and pairs as one batch; what is not there is None."""
    return EMPTY._replace(**parts)


def only_part(parts: dict[str, Any]) -> Any:
    """The batch of a feed that has no others beside it."""
    (batch,) = parts.values()
    return batch


class Loaded(NamedTuple):
    """A batch with the samples that failed on the way; None when too many did."""

    batch: Any
    failures: list[Failure]


@dataclass(frozen=True)
class Feed:
    """One part of a batch: where its samples come from and how they become rows.

    Args:
        part: its name; in pretraining the field of `PretrainingBatch`: image, text or pair.
        samples: what there is.
        order: which sample comes when.
        row: (sample, generator) -> row.
        collate: rows -> the part of the batch.
        batch_size: rows a step on one rank.
        seed: of every draw for a sample.
        max_errors: failed samples after which a row is given up.
    """

    part: str
    samples: Table
    order: Order
    row: Callable[..., Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    seed: int
    max_errors: int

    def draw(
        self, places: list[tuple[int, int]], failures: list[Failure]
    ) -> list[tuple[Any, bool]] | None:
        """(row, whether it is the one that was asked for) of each (epoch, place): a sample that
        fails is noted in `failures` and its neighbour takes its place. None where one is given up.

        All texts come before the first image: tokenizer and decoder in turns push each other out
        of the processor's caches, which made both of them slower.
        """
        drawings = [self._draw(epoch, place, failures) for epoch, place in places]
        for drawing in drawings:
            next(drawing)
        drawn = []
        for drawing in drawings:
            found = next(drawing)
            if found is None:
                return None
            drawn.append(found)
        return drawn

    def _draw(
        self, epoch: int, place: int, failures: list[Failure]
    ) -> Iterator[tuple[Any, bool] | None]:
        """None when the text of a first usable sample is read, then the row as in `draw`."""
        number = self.order.sample(epoch, place)
        total = len(self.samples)
        failed: set[tuple[str, str]] = set()  # several rows may come from one bad sample
        found, begun = None, False
        for attempt in range(total):
            candidate = (number + attempt) % total
            sample = self.samples[candidate]
            try:
                finish = self._begin(sample, seeded(self.seed, self.part, epoch, candidate))
                if not begun:
                    begun = True
                    yield None
                found = finish(), attempt == 0
                break
            except SampleError as error:
                failures.append(Failure(error.kind, sample.shard, sample.key, str(error)))
                failed.add((sample.shard, sample.key))
                if len(failed) > self.max_errors:
                    break
        if not begun:
            yield None
        yield found

    def _begin(self, sample: Any, choice: random.Random) -> Callable[[], Any]:
        """What is left to do for a row once its text is read; all of it for one without."""
        begin = getattr(self.row, "begin", None)
        return begin(sample, choice) if begin else partial(self.row, sample, choice)


class TrainingSteps(Dataset):
    """Training batches of one rank by `Position`; `assemble` makes one of the parts."""

    def __init__(
        self,
        feeds: list[Feed],
        schedule: Schedule,
        assemble: Callable[[dict[str, Any]], Any] = pretraining_batch,
    ):
        self.feeds = feeds
        self.schedule = schedule
        self.assemble = assemble

    def __getitem__(self, position: Position) -> Loaded:
        failures: list[Failure] = []
        parts = {}
        for feed in self.feeds:
            places = self.schedule.places(position, feed.order.total, feed.batch_size)
            drawn = feed.draw(places, failures)
            if drawn is None:
                return Loaded(None, failures)
            parts[feed.part] = feed.collate([row for row, _ in drawn])
        return Loaded(self.assemble(parts), failures)


class EvaluationSteps(Dataset):
    """Batches of one rank, by step number, that hold every sample exactly once over all ranks.

    All ranks have the same number of batches; where a rank has no sample left for one, its only row
    is marked as padding (nothing masked, nothing to predict). A part whose samples are all used up
    is None, on all ranks at once.
    """

    def __init__(
        self,
        feeds: list[Feed],
        rank: int,
        world: int,
        assemble: Callable[[dict[str, Any]], Any] = pretraining_batch,
    ):
        self.feeds = feeds
        self.rank = rank
        self.world = world
        self.assemble = assemble

    def __len__(self) -> int:
        return max(
            num_evaluation_steps(feed.order.total, feed.batch_size, self.world)
            for feed in self.feeds
        )

    def __getitem__(self, step: int) -> Loaded:
        failures: list[Failure] = []
        parts = {}
        for feed in self.feeds:
            total = feed.order.total
            if step >= num_evaluation_steps(total, feed.batch_size, self.world):
                continue
            places = evaluation_places(step, feed.batch_size, self.rank, self.world)
            # The last batch is as small as it is: rows that fill up would count in expert loads.
            # A rank that has nothing left takes one, because the others do make a forward.
            places = [place for place in places if place < total] or places[:1]
            drawn = feed.draw([(0, place % total) for place in places], failures)
            if drawn is None:
                return Loaded(None, failures)
            rows = [
                row if asked_for and place < total else row.silent()
                for place, (row, asked_for) in zip(places, drawn, strict=True)
            ]
            parts[feed.part] = feed.collate(rows)
        return Loaded(self.assemble(parts), failures)
