"""Which trial is next: one that was lost before a new one, and every one exactly once.

A trial is Optuna's as long as it runs. When its worker is gone it is marked as failed, without an
error, and put in line again under a new number that names the old one. Each of these steps may be
done by several workers at once, or be cut off by a kill, without a trial being lost or doubled.
"""

import fcntl
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from tools.sweep.records import (
    AGAIN,
    ATTEMPT,
    BEAT,
    RELEASED,
    ROOT,
    SURPLUS,
    WORKER,
    given_up,
    lost,
    ordinal,
    records,
    root_of,
)
from tools.sweep.sampler import Planned
from tools.sweep.sweep import Budget

BEAT_S = 60.0
"""A worker says so often that it is alive."""
STALE_S = 300.0
"""One on another machine that was silent for so long is taken for gone."""


class Worker:
    """This process, for others to see whether it is alive: a file that it has locked."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, uuid.uuid4().hex
        self.handle = os.open(folder / self.name, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.handle, fcntl.LOCK_EX)

    @property
    def card(self) -> dict[str, str]:
        """What a trial says of its worker."""
        return {"host": socket.gethostname(), "name": self.name}

    def leave(self) -> None:
        """Let others see that it is gone, with whatever it still had."""
        os.close(self.handle)

    def gone(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a running trial is: at once if it was on this machine, after a
        while of silence if not.
        """
        card = trial.user_attrs.get(WORKER, {})
        path = self.folder / card.get("name", "")
        if card.get("host") == socket.gethostname() and path.is_file():
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
                return True
        started = trial.datetime_start
        begun = started.timestamp() if started else time.time()
        return time.time() - max(trial.user_attrs.get(BEAT, 0.0), begun) > STALE_S


class Queue:
    """The trials of a study, as one worker takes them.

    Args:
        limit: how many are begun at most; None without a limit.
    """

    def __init__(self, study: optuna.Study, budget: Budget, worker: Worker):
        self.study, self.budget, self.worker = study, budget, worker
        cells = study.sampler.cells if isinstance(study.sampler, Planned) else None
        limits = [
            n for n in (budget.trials, None if cells is None else len(cells)) if n is not None
        ]
        self.limit = min(limits, default=None)
        self.one_at_a_time = threading.Lock()

    def take(self) -> optuna.Trial | None:
        """The next trial, which is then running; None where there is none left to begin."""
        with self.one_at_a_time:
            while True:
                self.mend()
                trials = self.trials()
                waiting = any(trial.state == TrialState.WAITING for trial in trials)
                if not waiting and self._used_up(trials):
                    return None
                trial = self.study.ask()
                if not self._surplus(trial):
                    trial.set_user_attr(WORKER, self.worker.card)
                    return trial
                trial.set_user_attr(SURPLUS, True)
                self.study.tell(trial, state=TrialState.FAIL)

    def release(self, trial: optuna.Trial, counted: bool) -> None:
        """Put a trial back that is not over; where it is not known why, that is counted as a worker
        that was lost.
        """
        with suppress(UpdateFinishedTrialError):
            if not counted:
                trial.set_user_attr(RELEASED, True)
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        self.mend()

    def mend(self) -> None:
        """Put in line again what lost its worker."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self.worker.gone(trial):
                with suppress(UpdateFinishedTrialError):
                    self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        trials = self.trials()
        again = {trial.user_attrs.get(AGAIN) for trial in trials}
        for trial in trials:
            if lost(trial) and trial.number not in again and not given_up(trial):
                attrs = trial.user_attrs
                attempt = attrs.get(ATTEMPT, 1) + (RELEASED not in attrs)
                about = {AGAIN: trial.number, ROOT: root_of(trial), ATTEMPT: attempt}
                self.study.enqueue_trial(trial.params, about)

    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _used_up(self, trials: list[FrozenTrial]) -> bool:
        """Whether no new trial is to be begun."""
        begun = ordinal(trials, len(trials))
        if self.limit is not None and begun >= self.limit:
            return True
        spent = sum(record.seconds or 0.0 for record in records(trials))
        return self.budget.seconds is not None and spent >= self.budget.seconds

    def _surplus(self, trial: optuna.Trial) -> bool:
        """Whether another worker began the same, or the last one of the budget, at this moment."""
        trials, parent = self.trials(), trial.user_attrs.get(AGAIN)
        if parent is None:
            return self.limit is not None and ordinal(trials, trial.number) >= self.limit
        return any(
            one.user_attrs.get(AGAIN) == parent and one.number < trial.number for one in trials
        )
