"""Told to end, a run saves and ends; nothing is lost."""

import os
import signal
from pathlib import Path

import pytest
import torch

from mhmoe_mm.callbacks.preemption import Preemption
from tests.reliability.processes import ENDLESS, calm, project, started, wait_for, weights

STATUS = 143
FSDP = ("--trainer.strategy", "fsdp")
BACKGROUND = ("--checkpoint.background", "true")


def told(log: Path) -> str:
    return log.read_text(errors="replace")


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "rank", "ranks", "options"),
    [
        ("SIGTERM", 0, 1, ()),
        ("SIGUSR1", 0, 1, BACKGROUND),
        ("SIGTERM", 1, 2, (*FSDP, *BACKGROUND)),
    ],
)
def test_a_run_that_is_told_to_end_saves_and_goes_on_as_if_it_had_not(
    tmp_path: Path, name: str, rank: int, ranks: int, options: tuple[str, ...]
):
    config = project(tmp_path)
    run = started(config, "told", ranks, *ENDLESS, *options)
    processes = run.start()
    try:
        wait_for(lambda: (run.place / "version_0/metrics.csv").exists() or not processes.alive)
        assert processes.alive, told(run.log)
        os.kill(processes.processes[rank].pid, getattr(signal, name))
        status = processes.wait(60)
    finally:
        processes.kill()
    assert status == STATUS, told(run.log)
    assert f"told to end ({name if rank == 0 else 'another rank'}): saved step" in told(run.log)
    step, _ = weights(run)
    assert step > 0

    more = ("--trainer.max_steps", str(step + 3), "--trainer.limit_val_batches", "0")
    again = started(config, "told", ranks, *more, *options)
    again.finish()
    end, found = weights(again)
    assert end == step + 3
    if ranks == 1:
        expected = calm(config, "calm", end, "--trainer.limit_val_batches", "0")
    else:
        undisturbed = started(config, "calm", ranks, *more, *options)
        undisturbed.finish()
        _, expected = weights(undisturbed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_signal_ends_the_run_at_once(tmp_path: Path):
    run = started(project(tmp_path), "told", 1, *ENDLESS)
    processes = run.start()
    try:
        wait_for(lambda: (run.place / "version_0/metrics.csv").exists() or not processes.alive)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(processes.processes[0].pid, number)
        status = processes.wait(30)
    finally:
        processes.kill()
    assert status in (-signal.SIGTERM, -signal.SIGUSR1)  # in whatever order they came
    assert "saved step" not in told(run.log)


def test_asking_never_is_refused():
    with pytest.raises(ValueError, match="every_n_steps is 1 or more, got 0"):
        Preemption(every_n_steps=0)
