"""The order of the samples: a pure function of (seed, epoch).

Shards are shuffled as blocks, then samples are shuffled within windows of several shards, so that a
reader holds few shards open and still mixes far. Global sample i of an epoch goes to rank i mod
world, hence neither the number of ranks nor the number of workers changes the order:

    epoch order   s0 s1 s2 s3 s4 s5 s6 s7 s8 ...
    world 2       |0  1  0  1| 0  1  0  1| 0        | one step of batch size 2 on each rank |
    world 1       |0  0| 0  0| 0  0| 0  0| 0
"""

import hashlib
import random
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.recent import Recent


class Order(Protocol):
    """Which sample comes at which place of an epoch."""

    total: int

    def sample(self, epoch: int, place: int) -> int:
        """The number of the sample, counted over all shards, at `place` in [0, total)."""
        ...


class NaturalOrder:
    """Samples as they lie in the shards, in every epoch."""

    def __init__(self, counts: list[int]):
        self.total = sum(counts)

    def sample(self, epoch: int, place: int) -> int:
        return place


class ShuffledOrder:
    """Shards shuffled, then samples within windows of `window` shards; new in every epoch."""

    def __init__(self, counts: list[int], seed: int, name: str, window: int = 8):
        if window < 1:
            raise ValueError(f"The shuffle window must be at least 1 shard, got {window}.")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        self.seed = seed
        self.name = name
        self.window = window
        self._starts = np.cumsum(self.counts) - self.counts
        self._shards: Recent[tuple[np.ndarray, np.ndarray]] = Recent(4)
        self._windows: Recent[np.ndarray] = Recent(4)

    def sample(self, epoch: int, place: int) -> int:
        shards, ends = self._shards.get(epoch, lambda: self._shuffled_shards(epoch))
        window = int(np.searchsorted(ends, place, side="right"))
        order = self._windows.get(
            (epoch, window), lambda: self._shuffled_window(epoch, window, shards)
        )
        return int(order[place - (int(ends[window - 1]) if window else 0)])

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the number of samples up to each window's end."""
        shards = permutation(len(self.counts), self.seed, "shards", self.name, epoch)
        edges = np.arange(0, len(shards), self.window)
        return shards, np.cumsum(np.add.reduceat(self.counts[shards], edges))

    def _shuffled_window(self, epoch: int, window: int, shards: np.ndarray) -> np.ndarray:
        members = shards[window * self.window : (window + 1) * self.window]
        starts, counts = self._starts[members].tolist(), self.counts[members].tolist()
        samples = np.concatenate(
            [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
        )
        return samples[permutation(len(samples), self.seed, "window", self.name, epoch, window)]


class Position(NamedTuple):
    """How far training is: samples of the leading source consumed in this epoch, over all ranks."""

    epoch: int
    sample: int


class Schedule:
    """Which places of each source make up the step at a position, for one rank of a world.

    The leading source defines the epoch: floor(total / global batch) steps, the same on all ranks.
    The others advance in proportion to it and wrap around, in epochs of their own.
    """

    def __init__(self, total: int, batch_size: int, rank: int = 0, world: int = 1):
        assert 0 <= rank < world, f"rank {rank} of a world of {world}"
        self.total = total
        self.batch_size = batch_size
        self.rank = rank
        self.world = world
        self.global_batch = batch_size * world

    def num_steps(self, consumed: int = 0) -> int:
        """Steps left in an epoch of which `consumed` samples are behind us."""
        return max(0, self.total - consumed) // self.global_batch

    def positions(self, epoch: int, consumed: int = 0) -> list[Position]:
        """The positions of the steps that are left, in order."""
        stop = consumed + self.num_steps(consumed) * self.global_batch
        return [Position(epoch, sample) for sample in range(consumed, stop, self.global_batch)]

    def places(self, position: Position, total: int, batch_size: int) -> list[tuple[int, int]]:
        """(epoch, place) of this rank's rows from a source of `total` samples.

        For the leading source these are the samples from `position` on.
        """
        absolute = position.epoch * self.total + position.sample
        # Rounded up: after an epoch whose last samples did not fill a batch, nothing is repeated.
        start = -(-absolute * batch_size // self.batch_size)
        rows = range(start + self.rank, start + batch_size * self.world, self.world)
        return [divmod(row, total) for row in rows]


def evaluation_places(step: int, batch_size: int, rank: int, world: int) -> list[int]:
    """Places of a rank's rows in a pass that sees each sample once; beyond the last, padding."""
    start = step * batch_size * world
    return list(range(start + rank, start + batch_size * world, world))


def num_evaluation_steps(total: int, batch_size: int, world: int) -> int:
    """Steps of such a pass, the same on all ranks."""
    return -(-total // (batch_size * world))


def seeded(*parts: int | str) -> random.Random:
    """A generator that depends on `parts` and on nothing else."""
    return random.Random(_digest(parts))


def permutation(length: int, *parts: int | str) -> np.ndarray:
    """A permutation of `length` that depends on `parts` only.

    It sorts the raw words of a counter-based generator, whose stream numpy promises to keep; that
    of `Generator.permutation` may change between releases.
    """
    words = np.random.Philox(key=_digest(parts)).random_raw(length)
    return np.argsort(words, kind="stable")


def _digest(parts: tuple[int | str, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest())
