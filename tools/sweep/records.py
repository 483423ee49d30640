"""What became of the trials: Optuna's, of which several may be one that was begun again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

AGAIN, ROOT, ATTEMPT = "again_of", "root", "attempt"
"""Of a trial that is begun again: the number of the one that was lost, that of the first, and how
often a worker was lost with it."""
WORKER, BEAT = "worker", "beat"
ERROR, LOG, INFEASIBLE, SURPLUS, RELEASED = "error", "log", "infeasible", "surplus", "released"
SECONDS, COST, TIME, STEP = "seconds", "cost", "seconds_per_step", "step"
MOST_ATTEMPTS = 5
"""A trial whose worker was lost so often is given up: it may be what ends them."""
OVER = ("finished", "pruned", "failed", "infeasible")


@dataclass(frozen=True)
class Record:
    """A trial with all its attempts.

    Args:
        number: of the first attempt, by which the folder is named.
        state: one of `OVER`, running, waiting or lost (its worker is gone, and nobody has put it
            back yet).
        last: the newest attempt.
        attempts: how many there were.
    """

    number: int
    state: str
    last: FrozenTrial
    attempts: int

    @property
    def value(self) -> float | None:
        """Of a finished trial."""
        return self.last.value if self.state == "finished" else None

    @property
    def seconds(self) -> float | None:
        return self.last.user_attrs.get(SECONDS)

    @property
    def why(self) -> str:
        """Why there is no value; empty for a finished trial."""
        attrs = self.last.user_attrs
        if self.state == "failed":
            lost = f"it was cut off {MOST_ATTEMPTS} times"
            return f"{attrs[ERROR]} ({attrs[LOG]})" if ERROR in attrs else lost
        if self.state == "pruned":
            return f"ended at step {attrs.get(STEP)}"
        return attrs.get(INFEASIBLE, "")


def root_of(trial: FrozenTrial) -> int:
    """The number of the first attempt."""
    return trial.user_attrs.get(ROOT, trial.number)


def lost(trial: FrozenTrial) -> bool:
    """Whether its worker is gone, or put it back."""
    attrs = trial.user_attrs
    return trial.state == TrialState.FAIL and not {ERROR, SURPLUS} & attrs.keys()


def given_up(trial: FrozenTrial) -> bool:
    """Whether a lost trial is not begun again."""
    attempt = trial.user_attrs.get(ATTEMPT, 1)
    return attempt >= MOST_ATTEMPTS and RELEASED not in trial.user_attrs


def records(trials: Sequence[FrozenTrial]) -> list[Record]:
    """Every trial once, in the order in which they were first begun."""
    found: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if SURPLUS not in trial.user_attrs:
            found.setdefault(root_of(trial), []).append(trial)
    return [
        Record(number, state_of(attempts[-1]), attempts[-1], len(attempts))
        for number, attempts in sorted(found.items())
    ]


def state_of(trial: FrozenTrial) -> str:
    """In our words."""
    if lost(trial):
        return "failed" if given_up(trial) else "lost"
    if trial.state == TrialState.PRUNED:
        return "infeasible" if INFEASIBLE in trial.user_attrs else "pruned"
    return {
        TrialState.COMPLETE: "finished",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }[trial.state]


def ordinal(trials: Iterable[FrozenTrial], number: int) -> int:
    """How many trials were begun before this one, those that were begun again counted once."""
    return sum(
        trial.number < number and not {AGAIN, SURPLUS} & trial.user_attrs.keys() for trial in trials
    )


def best(found: Sequence[Record], minimize: bool) -> Record | None:
    """The finished trial that is ahead."""
    known = [record for record in found if record.value is not None]
    sign = 1 if minimize else -1

    def key(record: Record) -> Any:
        return sign * (record.value or 0.0)

    return min(known, key=key) if known else None
