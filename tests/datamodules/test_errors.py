import pytest

from datamodules.errors import Failure, Ledger
from datamodules.index import ShardError


def failure(number: int, kind: str = "decode", shard: str = "00000.tar") -> Failure:
    return Failure(kind, shard, f"{number:09d}", f"Shard {shard}: {number:09d}.png is damaged.")


def test_the_first_error_raises_its_sentence_by_default():
    with pytest.raises(ShardError, match=r"^Shard 00000\.tar: 000000003\.png is damaged\."):
        Ledger().add([failure(3)])


def test_a_budget_lets_that_many_samples_fail_and_no_more():
    ledger = Ledger(max_errors=2)
    ledger.add([failure(1), failure(2, "bytes", "00001.tar")])
    with pytest.raises(ShardError, match=r"3 samples failed.*max_errors=2.*000000007"):
        ledger.add([failure(7)])


def test_a_sample_that_fails_in_every_epoch_counts_once():
    ledger = Ledger(max_errors=1)
    for _ in range(5):
        ledger.add([failure(1)])
    assert ledger.total == 1


def test_counts_are_kept_by_kind_and_shard_and_reported_once(caplog):
    ledger = Ledger(max_errors=9)
    ledger.add([failure(1), failure(2), failure(3, "bytes"), failure(1, shard="00001.tar")])
    assert ledger.counts["decode", "00000.tar"] == 2
    assert ledger.metrics() == {
        "data/skipped": 4,
        "data/skipped/decode": 3,
        "data/skipped/bytes": 1,
    }
    caplog.clear()
    assert ledger.report()
    assert not ledger.report()
    assert [record.message for record in caplog.records] == [
        "4 samples skipped so far: 1 x bytes in 00000.tar, 2 x decode in 00000.tar, "
        "1 x decode in 00001.tar."
    ]


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="max_errors"):
        Ledger(-1)
