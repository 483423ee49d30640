"""Sweeps that are killed, shared, silent: every trial is carried out once, none is lost."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.programs import heeds_interrupts
from tests.tools.sweep_standin import calls, rows, sweep, write
from tools.sweep import queue as queue_of
from tools.sweep.queue import Queue, Worker
from tools.sweep.records import ERROR, LOG, MOST_ATTEMPTS, SURPLUS, WORKER, records
from tools.sweep.sweep import Budget

VALUES = [3, 2, 7, 5, 11, 13]


def begin(*options: str, pause: float = 0.1) -> subprocess.Popen[str]:
    write(f"--pause {pause}")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tools.sweep_standin", "run", "hill.yaml", *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heeds_interrupts,
    )  # fmt: skip


def until(condition, what: str) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def alive() -> list[int]:
    """Processes of trials that are still there."""
    lines = [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]
    found = []
    for number in {line[3] for line in lines}:
        state = Path(f"/proc/{number}/stat")
        if state.exists() and state.read_text().split()[2] != "Z":
            found.append(number)
    return found


@pytest.mark.faults
def test_a_sweep_that_is_killed_goes_on_and_carries_out_every_trial_once(sweep_folder):
    process = begin("--jobs", "2", pause=0.5)
    # Both jobs are at further trials, so what has ended is recorded.
    until(lambda: len(calls()) - len(calls("ended")) == 2 <= len(calls("ended")), "two trials")
    process.kill()
    process.wait()
    ended = Counter(calls("ended"))
    assert len(ended) < len(VALUES)
    until(lambda: not alive(), "the end of the trials whose worker was killed")
    process = begin("--jobs", "2", pause=0.5)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "6 trials: 6 finished." in said
    assert Counter(calls("ended")) == dict.fromkeys(VALUES, 1)
    found = rows()
    assert sorted(int(row["model.x"]) for row in found) == sorted(VALUES)
    again = [int(row["model.x"]) for row in found if row["attempts"] == "2"]
    assert again, "some trial was running when the worker was killed"
    assert not {*again} & ended.keys()
    assert Counter(calls()) == {value: 1 + (value in again) for value in VALUES}


@pytest.mark.faults
def test_several_programs_share_the_trials(sweep_folder):
    processes = [begin(), begin("--jobs", "2")]
    for process in processes:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
    assert Counter(calls()) == dict.fromkeys(VALUES, 1)
    assert [row["state"] for row in rows()] == ["finished"] * 6


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_told_to_end_puts_its_trials_back(sweep_folder, number):
    process = begin(pause=0.5)
    until(calls, "a trial")
    process.send_signal(number)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 128 + number
    assert "trial 0 is put back (model.x 3)" in said
    assert "the same command goes on with it" in said
    assert not alive()
    said, _ = begin("--trials", "1", pause=0.5).communicate(timeout=240)
    assert "1 trials: 1 finished" in said
    assert calls() == [3, 3]


def test_a_failed_trial_is_recorded_with_its_last_line_and_leaves_the_others(sweep_folder, capsys):
    assert sweep("--jobs", "2", more="--worst 7") == 1
    assert [row["state"] for row in rows()].count("finished") == 5
    row = rows()[2]
    assert row["state"] == "failed"
    assert row["why"] == (
        "status 1: mhmoe-mm: error: the loss is not finite. (runs/hill/trial-0002/fit.log)"
    )
    assert "trial 2 failed, status 1: mhmoe-mm" in capsys.readouterr().out
    assert sweep(more="--worst 7") == 1
    assert len(calls()) == 6


def test_a_trial_that_ends_its_worker_again_and_again_is_given_up(sweep_folder, monkeypatch):
    study = optuna.create_study()
    for attempt in range(1, MOST_ATTEMPTS + 1):
        trial = study.ask()
        trial.suggest_int("x", 7, 7)
        trial.set_user_attr(WORKER, {"host": "elsewhere", "name": "a"})
        monkeypatch.setattr(queue_of, "STALE_S", 1e9)
        own = Queue(study, Budget(trials=1), Worker(sweep_folder / "workers"))
        own.mend()
        [found] = records(study.trials)
        assert (found.state, found.attempts) == ("running", attempt)
        monkeypatch.setattr(queue_of, "STALE_S", 0.0)
        own.mend()
    [found] = records(study.trials)
    assert (found.state, found.number, found.attempts) == ("failed", 0, MOST_ATTEMPTS)
    assert found.why == "it was cut off 5 times"
    assert own.take() is None


def test_a_lost_trial_is_put_in_line_once_even_if_two_workers_do_so(sweep_folder):
    study = optuna.create_study()
    study.ask().suggest_int("x", 7, 7)
    study.tell(0, state=TrialState.FAIL)
    one, other = (
        Queue(study, Budget(trials=1), Worker(sweep_folder / "workers")) for _ in range(2)
    )
    one.mend()
    attrs = study.trials[1].user_attrs
    study.enqueue_trial({"x": 7}, attrs)  # as by one that saw no other at that moment
    taken = other.take()
    assert taken is not None
    assert taken.suggest_int("x", 1, 9) == 7
    assert one.take() is None
    assert [SURPLUS in trial.user_attrs for trial in study.trials] == [False, False, True]
    [found] = records(study.trials)
    assert (found.number, found.state, found.attempts) == (0, "running", 2)


def test_what_is_begun_beyond_the_budget_at_the_same_moment_is_not_counted(sweep_folder):
    study = optuna.create_study()
    own = Queue(study, Budget(trials=1), Worker(sweep_folder / "workers"))
    assert not own._surplus(study.ask())
    late = study.ask()
    assert own._surplus(late)
    late.set_user_attr(SURPLUS, True)
    study.tell(late, state=TrialState.FAIL)
    assert len(records(study.trials)) == 1


def test_a_worker_of_this_machine_is_known_to_be_gone_at_once(sweep_folder):
    study = optuna.create_study()
    here, there = (Worker(sweep_folder / "workers") for _ in range(2))
    trial = study.ask()
    trial.set_user_attr(WORKER, there.card)
    assert not here.gone(study.trials[0])
    there.leave()
    assert here.gone(study.trials[0])
    trial.set_user_attr(WORKER, {**there.card, "host": "elsewhere"})
    assert not here.gone(study.trials[0])


def test_an_error_is_kept_though_the_worker_was_killed_right_after(sweep_folder):
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr(LOG, "fit.log")
    trial.set_user_attr(ERROR, "out of memory")
    study.tell(trial, state=TrialState.FAIL)
    own = Queue(study, Budget(trials=1), Worker(sweep_folder / "workers"))
    assert own.take() is None
    [found] = records(study.trials)
    assert (found.state, found.why) == ("failed", "out of memory (fit.log)")


def test_a_training_that_somebody_else_ends_is_begun_again_until_it_is_given_up(sweep_folder):
    assert sweep("--trials", "2", more="--ended 3") == 1
    assert calls() == [3] * MOST_ATTEMPTS + [2]
    assert [(row["state"], row["attempts"]) for row in rows()] == [
        ("failed", str(MOST_ATTEMPTS)), ("finished", "1")
    ]  # fmt: skip


def test_another_attempt_finds_the_folder_empty_unless_it_goes_on_from_a_checkpoint(sweep_folder):
    for more, versions in (("", 1), (" --ckpt_path auto", MOST_ATTEMPTS)):
        name = f"hill{versions}"
        assert sweep("--trials", "1", more=f"--ended 3{more}", name=name) == 1
        assert len(list(Path(f"runs/{name}/trial-0000").glob("version_*"))) == versions
