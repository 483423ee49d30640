"""Samples read front to back from shards without an index, by a webdataset pipeline.

Shards are drawn with replacement, so the run has no exact epochs: it resumes with other samples of
the same distribution, not with the same ones. webdataset's own `decode()` is never called; members
are read under the same allowlist and caps as with an index.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.shardlists import ResampledShards

from datamodules.decoders import Limits
from datamodules.errors import Failure, SampleError
from datamodules.loading import Loading, worker_loader
from datamodules.members import ShardError
from datamodules.order import Position, Schedule, seeded
from datamodules.reading import Sample
from datamodules.steps import EMPTY, Loaded
from datamodules.streamed_tar import read_stream

MAX_BAD_SHARDS = 100
"""Failures in a row, without a sample between, after which a stream is given up."""


@dataclass(frozen=True)
class Streaming:
    """Reading without an index.

    Args:
        samples_per_epoch: samples of the leading source that are called an epoch, over all ranks.
        shuffle: samples in the shuffle buffer of each source and worker.
        allow_pipe: accept `pipe:` shards, which run their text as a shell command.
    """

    samples_per_epoch: int
    shuffle: int = 1000
    allow_pipe: bool = False


@dataclass(frozen=True)
class Stream:
    """One part of a batch, streamed: fields as in `Feed`, with `shards` for samples and order."""

    part: str
    shards: list[str]
    row: Callable[..., Any]
    collate: Callable[[list[Any]], Any]
    batch_size: int
    seed: int
    limits: Limits
    buffer: int

    def rows(self, failures: list[Failure], *place: int) -> Iterator[Any]:
        """Rows without end, a function of the seed and of `place` (epoch, sample, rank, worker)."""
        seed = (self.seed, self.part, *place)

        def samples(urls: Iterator[dict[str, str]]) -> Iterator[Sample]:
            for url in urls:
                try:
                    yield from read_stream(url["url"], self.limits)
                except ShardError as error:
                    failures.append(Failure("shard", url["url"], "", str(error)))
                    self._give_up(failures)

        def made(stream: Iterator[Sample]) -> Iterator[Any]:
            for number, sample in enumerate(stream):
                try:
                    yield self.row(sample, seeded(*seed, "row", number))
                except SampleError as error:
                    failures.append(Failure(error.kind, sample.shard, sample.key, str(error)))
                    self._give_up(failures)

        draw = seeded(*seed, "shards").getrandbits(62)
        pipeline = DataPipeline(
            ResampledShards(self.shards, worker_seed=lambda: draw, deterministic=True),
            samples,
            shuffle(self.buffer, initial=self.buffer // 2, rng=seeded(*seed, "shuffle")),
            made,
        )
        return iter(pipeline)

    def _give_up(self, failures: list[Failure]) -> None:
        """Stop when the batch in the making has more failures than the run allows."""
        if len({(failure.shard, failure.key) for failure in failures}) > self.limits.max_errors:
            raise GivenUp
        if len(failures) > MAX_BAD_SHARDS + self.limits.max_errors:
            raise GivenUp


class GivenUp(Exception):
    """A stream has more failures than allowed; its failures say which."""


class StreamingSteps(IterableDataset):
    """The rest of an epoch for one rank, shared out to the workers step by step."""

    def __init__(self, streams: list[Stream], schedule: Schedule, positions: list[Position]):
        self.streams = streams
        self.schedule = schedule
        self.positions = positions

    def __iter__(self) -> Iterator[Loaded]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        mine = self.positions[worker::workers]
        if not mine:
            return
        failures: list[Failure] = []
        start = self.positions[0]
        rows = [
            stream.rows(failures, *start, self.schedule.rank, worker) for stream in self.streams
        ]
        for _ in mine:
            try:
                parts = {
                    stream.part: stream.collate([next(source) for _ in range(stream.batch_size)])
                    for stream, source in zip(self.streams, rows, strict=True)
                }
            except GivenUp:
                yield Loaded(None, list(failures))
                return
            yield Loaded(EMPTY._replace(**parts), list(failures))
            failures.clear()


def run_stream(
    streams: list[Stream], schedule: Schedule, loading: Loading, positions: list[Position]
) -> Iterator[Loaded]:
    """One batch for each position."""
    steps = StreamingSteps(streams, schedule, positions)
    return iter(worker_loader(steps, loading, sampler=None))
