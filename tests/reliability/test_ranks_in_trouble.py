"""A rank that hangs, dies or fails ends the whole training, with another status than 0."""

import time
from pathlib import Path

import pytest

from mhmoe_mm.callbacks.watchdog import EXIT_STATUS, Watchdog
from tests.reliability.processes import ENDLESS, project, started

LIMIT_S = 240.0
TIMEOUT_S = 15
STATUS = {"hangs": EXIT_STATUS, "dies": -9, "fails": 1}
WATCHED = ("--plugin", "tests", "--watchdog.timeout_s", str(TIMEOUT_S))


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kind", "strategy"), [("hangs", "ddp"), ("dies", "fsdp"), ("fails", "fsdp")]
)
def test_trouble_of_one_rank_ends_all_of_them(tmp_path: Path, kind: str, strategy: str):
    trouble = ("--trainer.callbacks+", "tests.reliability.troublemakers.Trouble")
    options = (*trouble, "--trainer.callbacks.kind", kind, "--trainer.strategy", strategy)
    run = started(project(tmp_path), "trouble", 2, *ENDLESS, *WATCHED, *options)
    ranks, begun = run.start(), time.monotonic()
    try:
        left = [begun + LIMIT_S, begun + LIMIT_S + 30]
        first, second = (
            process.wait(max(1.0, end - time.monotonic()))
            for process, end in zip(ranks.processes, left, strict=True)
        )
    finally:
        ranks.kill()
    said = run.log.read_text(errors="replace")
    assert second == STATUS[kind], said
    assert first != 0, said
    if kind == "hangs":
        assert f"nothing has happened for {TIMEOUT_S} s (rank 1 of 2, 2 steps done)" in said
        assert "troublemakers.py" in said  # where it hangs


def test_a_negative_time_is_refused():
    with pytest.raises(ValueError, match="timeout_s is a number of seconds, 0 or more, got -1"):
        Watchdog(timeout_s=-1)
