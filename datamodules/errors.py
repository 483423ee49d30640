"""Samples that cannot be used: what went wrong, how often, and how much of it a run tolerates.

Workers never raise for a bad sample: they send `Failure` records along with the batch, and the
`Ledger` of the main process counts them and raises, so that the sentence arrives without a worker's
traceback around it.
"""

import logging
from collections import Counter
from typing import NamedTuple

from datamodules.members import ShardError

log = logging.getLogger(__name__)


class SampleError(ValueError):
    """One sample that cannot be used; `kind` is a word for the count, the text a full sentence."""

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


class Failure(NamedTuple):
    """A `SampleError` as it travels from a worker to the main process."""

    kind: str
    shard: str
    key: str
    sentence: str


class Ledger:
    """Counts failures per kind and shard and raises when more samples fail than `max_errors`.

    A sample that fails again in a later epoch is the same sample: the budget counts it once.
    """

    def __init__(self, max_errors: int = 0):
        if max_errors < 0:
            raise ValueError(f"max_errors must be 0 or more, got {max_errors}.")
        self.max_errors = max_errors
        self.counts: Counter[tuple[str, str]] = Counter()
        """How many samples failed, by (kind, shard)."""
        self._seen: dict[tuple[str, str], str] = {}
        self._reported = 0

    @property
    def total(self) -> int:
        """Samples that failed so far."""
        return len(self._seen)

    @property
    def samples(self) -> dict[str, str]:
        """What failed first in each sample that failed: `shard/key` -> kind."""
        return {f"{shard}/{key}": kind for (shard, key), kind in self._seen.items()}

    def add(self, failures: list[Failure]) -> None:
        """Count failures; raises `ShardError` at the one that exceeds the budget."""
        for failure in failures:
            sample = (failure.shard, failure.key)
            if sample in self._seen:
                continue
            self._seen[sample] = failure.kind
            self.counts[failure.kind, failure.shard] += 1
            if self.total > self.max_errors:
                raise ShardError(self._over(failure))
            log.warning(
                "Skipped %d of at most %d: %s", self.total, self.max_errors, failure.sentence
            )

    def report(self) -> bool:
        """Log the table of failures when there are new ones; whether there were."""
        if self.total == self._reported:
            return False
        self._reported = self.total
        log.warning("%d samples skipped so far: %s.", self.total, self.summary())
        return True

    def summary(self) -> str:
        """`2 x decode in 00000.tar, 1 x caption in 00003.tar`."""
        rows = sorted(self.counts.items())
        return ", ".join(f"{count} x {kind} in {shard}" for (kind, shard), count in rows)

    def metrics(self) -> dict[str, float]:
        """Counts for a logger: `data/skipped` and `data/skipped/<kind>`."""
        metrics = {"data/skipped": float(self.total)}
        for (kind, _), count in self.counts.items():
            name = f"data/skipped/{kind}"
            metrics[name] = metrics.get(name, 0.0) + count
        return metrics

    def _over(self, failure: Failure) -> str:
        if self.max_errors == 0:
            return (
                f"{failure.sentence} (To skip bad samples and count them, set limits.max_errors.)"
            )
        return (
            f"{self.total} samples failed, which is above limits.max_errors={self.max_errors} "
            f"({self.summary()}). The last: {failure.sentence}"
        )
