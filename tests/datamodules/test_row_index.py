"""The table of rows: what is counted, and when it is kept in the cache."""

import numpy as np
import pytest

from datamodules import row_index
from datamodules.decoders import Limits
from datamodules.errors import Ledger
from datamodules.reading import Samples
from datamodules.row_index import Rows
from datamodules.sources import expand_shards
from datamodules.task_rows import TaskRows

COUNTS = [3, 1, 5]


class Counted(TaskRows):
    """Sample i has i % 3 rows, so some samples have none; counts how often it was asked."""

    def __init__(self, name: str | None = "counted"):
        self.expands = name
        self.asked = 0

    def parts(self, sample):
        self.asked += 1
        return list(range(int(sample.key) % 3)), int(sample.key) == 5

    def __call__(self, entry, choice):
        raise AssertionError

    def collate(self, rows):
        raise AssertionError


@pytest.fixture
def make_rows(make_shards, tmp_path):
    usual = make_shards(COUNTS)

    def make(task, folder=usual):
        samples = Samples(expand_shards(str(folder)), Limits(), tmp_path)
        return Rows(samples, task, tmp_path / "cache", Ledger(), "train")

    return make


@pytest.fixture
def slow(monkeypatch):
    """Counting takes so long that it is kept."""
    monkeypatch.setattr(row_index, "WORTH_KEEPING_S", -1.0)


def places(rows):
    return [(rows[n].number, rows[n].part) for n in range(len(rows))]


def test_rows_lie_in_the_order_of_the_samples_and_are_counted_by_shard(make_rows):
    rows = make_rows(Counted())
    assert places(rows) == [(i, part) for i in range(9) for part in range(i % 3)]
    assert [int(rows[n].key) for n in range(len(rows))] == [i for i, _ in places(rows)]
    assert rows.counts == [0 + 1 + 2, 0, 1 + 2 + 0 + 1 + 2]
    assert rows.num_left_out == 1


def test_a_task_of_one_row_a_sample_is_not_asked(make_rows):
    task = Counted(name=None)
    rows = make_rows(task)
    assert (len(rows), rows.counts, task.asked) == (9, COUNTS, 0)


def test_what_was_quick_is_not_kept(make_rows, tmp_path):
    make_rows(Counted())
    assert not (tmp_path / "cache").exists()


def test_what_took_time_is_kept_for_the_same_question(make_rows, slow):
    first = make_rows(Counted())
    again = Counted()
    rows = make_rows(again)
    assert again.asked == 0
    assert (places(rows), rows.num_left_out) == (places(first), 1)
    other = Counted("another")
    make_rows(other)
    assert other.asked == 9


def test_other_content_under_the_same_names_is_counted_anew(make_rows, make_shards, slow):
    make_rows(Counted())
    task = Counted()
    make_rows(task, make_shards(COUNTS, change=lambda i, content: content | {"txt": b"new\n"}))
    assert task.asked == 9


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_a_damaged_cache_is_made_again(make_rows, tmp_path, slow, content, caplog):
    make_rows(Counted())
    (path,) = (tmp_path / "cache").glob("rows-*.npz")
    path.write_bytes(content)
    task = Counted()
    assert len(make_rows(task)) == 9
    assert task.asked == 9
    assert "cannot be read" in caplog.text
    with np.load(path) as kept:
        assert len(kept["table"]) == 9


def test_a_task_without_any_row_is_refused(make_rows):
    class Nothing(Counted):
        def parts(self, sample):
            return [], 1

    with pytest.raises(ValueError, match="train has no usable row in its 9 samples"):
        make_rows(Nothing())
