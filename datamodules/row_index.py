"""All rows of some samples by number.

To know how many rows a sample has, its texts must be read. Where that takes time the answer is kept
in the cache folder, under a name made of the shards' sha256 and of what was asked.
"""

import hashlib
import logging
import os
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from datamodules.errors import Failure, Ledger, SampleError
from datamodules.members import ShardError
from datamodules.reading import Samples, load_index
from datamodules.task_rows import Entry, TaskRows

log = logging.getLogger(__name__)

FORMAT = 1
WORTH_KEEPING_S = 1.0


class Rows:
    """The rows that a task makes of some samples.

    Args:
        samples: what there is.
        task: says which parts of a sample are rows.
        cache: folder for the table of rows.
        ledger: counts samples whose texts cannot be read; they have no rows.
        name: of the split, for messages.
    """

    def __init__(self, samples: Samples, task: TaskRows, cache: Path, ledger: Ledger, name: str):
        self.samples = samples
        if task.expands is None:
            numbers = np.arange(len(samples), dtype=np.int32)
            self._table = np.stack([numbers, np.zeros_like(numbers)], axis=1)
            self.num_left_out = 0
        else:
            path = cache / f"rows-{_digest(samples, task)}.npz"
            self._table, self.num_left_out = _load(path) or _make(samples, task, path, ledger)
        if not len(self._table):
            raise ShardError(f"{name} has no usable row in its {len(samples)} samples.")
        if self.num_left_out:
            log.warning(
                "%s: %d of %d rows are left out, for none of their answers is in the vocabulary.",
                name,
                self.num_left_out,
                self.num_left_out + len(self._table),
            )
        ends = np.cumsum(samples.counts)
        upto = np.searchsorted(self._table[:, 0], ends)
        self.counts = np.diff(upto, prepend=0).tolist()
        """Rows of each shard."""

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Entry:
        sample, part = self._table[number].tolist()
        return Entry(self.samples[sample], sample, part)


def _digest(samples: Samples, task: TaskRows) -> str:
    digest = hashlib.sha256(f"{FORMAT} {task.expands!r}".encode())
    for shard in samples.shards:
        digest.update(load_index(shard).sha256.encode())
    return digest.hexdigest()[:32]


def _load(path: Path) -> tuple[np.ndarray, int] | None:
    try:
        with np.load(path, allow_pickle=False) as content:
            return content["table"], int(content["left_out"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s) and is made again.", path, error)
        return None


def _make(samples: Samples, task: TaskRows, path: Path, ledger: Ledger) -> tuple[np.ndarray, int]:
    started = time.monotonic()
    table, left_out, failures = _count(samples, task)
    ledger.add(failures)
    # With failures it is not kept: a later run would not count them.
    if not failures and time.monotonic() - started > WORTH_KEEPING_S:
        _store(path, table, left_out)
    return table, left_out


def _count(samples: Samples, task: TaskRows) -> tuple[np.ndarray, int, list[Failure]]:
    pairs: list[tuple[int, int]] = []
    failures: list[Failure] = []
    left_out = 0
    for number in range(len(samples)):
        sample = samples[number]
        try:
            parts, others = task.parts(sample)
        except SampleError as error:
            failures.append(Failure(error.kind, sample.shard, sample.key, str(error)))
            continue
        pairs += [(number, part) for part in parts]
        left_out += others
    return np.array(pairs, dtype=np.int32).reshape(-1, 2), left_out, failures


def _store(path: Path, table: np.ndarray, left_out: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, table=table, left_out=left_out)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
