"""One trial: a training that is watched while it runs, and what becomes of it."""

import json
import math
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from tools.compare.cells import MEASURED
from tools.compare.curves import Curve, logged
from tools.compare.program import Place, last_line, start
from tools.sweep.layer import Infeasible
from tools.sweep.queue import BEAT_S, Queue
from tools.sweep.records import BEAT, COST, ERROR, INFEASIBLE, LOG, SECONDS, STEP, TIME, root_of
from tools.sweep.space import LAYER
from tools.sweep.sweep import Sweep

POLL_S = 0.5
ENDING_S = 30.0
"""A training that is to end has so long to do so before it is killed."""
TOLD_TO_END = (143, -signal.SIGTERM)
"""Exit statuses of a training that somebody else ended, such as a batch system."""


class Trial:
    """A trial that a worker has taken.

    Args:
        stop: set when the worker is to end; the trial is then put back.
    """

    def __init__(
        self, sweep: Sweep, queue: Queue, trial: optuna.Trial, runs: Path, stop: threading.Event
    ):
        self.sweep, self.queue, self.trial, self.stop = sweep, queue, trial, stop
        self.number = root_of(queue.study.get_trials(deepcopy=False)[trial.number])
        self.runs, self.folder = runs, trial_folder(runs, sweep, self.number)
        self.log = self.folder / "fit.log"
        self.reported: set[int] = set()

    def carry_out(self, where: Place) -> str:
        """Train and record what came of it; that in a line."""
        try:
            said = self._carry_out(where)
        except UpdateFinishedTrialError:
            # This machine was silent for so long that somebody else has begun the trial again.
            said = "was taken over by another worker, and is left to it"
        values = ", ".join(f"{key} {value}" for key, value in self.trial.params.items())
        return f"trial {self.number} {said} ({values})"

    def _carry_out(self, where: Place) -> str:
        values = {dimension.key: dimension.suggest(self.trial) for dimension in self.sweep.space}
        if not self.sweep.goes_on:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            words = self._words(values)
        except Infeasible as error:
            self.trial.set_user_attr(INFEASIBLE, str(error))
            # Pruned at no step is the worst that a sampler knows: it goes elsewhere.
            self.queue.study.tell(self.trial, state=TrialState.PRUNED)
            return f"is infeasible: {error}"
        begun = time.monotonic()
        process = start(["fit", *words], self.log, where, own_group=True)
        try:
            came = self._watch(process)
        finally:
            end(process)
        if came == "stopped" or (came == "ended" and process.returncode in TOLD_TO_END):
            self.queue.release(self.trial, counted=came == "ended")
            return "is put back"
        seconds = time.monotonic() - begun
        self.trial.set_user_attr(SECONDS, round(seconds, 2))
        return f"{self._record(came, process.returncode)}, {seconds:.0f} s"

    def _words(self, values: Mapping[str, Any]) -> list[str]:
        """The options of the training; the net is written where the layers are varied."""
        sweep, words = self.sweep, list(self.sweep.command)
        if sweep.layer is not None:
            numbers = {
                dimension.key.removeprefix(LAYER): dimension.meaning(values[dimension.key])
                for dimension in sweep.space
                if dimension.key.startswith(LAYER)
            }
            cost = sweep.layer.write(numbers, self.folder / "net.yaml")
            self.trial.set_user_attr(COST, cost._asdict())
            words += ["--model.net", str(self.folder / "net.yaml")]
        for dimension in sweep.space:
            words += dimension.words(values[dimension.key])
        name = f"{sweep.name}/{self.folder.name}"
        return [
            *words, *MEASURED, "--name", name, "--trainer.default_root_dir", str(self.runs),
        ]  # fmt: skip

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Wait until the training has ended (ended), is not worth going on (pruned) or the worker
        is to end (stopped).
        """
        beaten = 0.0
        while True:
            if time.time() - beaten > BEAT_S:
                beaten = time.time()
                self.trial.set_user_attr(BEAT, beaten)
            if process.poll() is not None:
                return "ended"
            if self.stop.wait(POLL_S):
                return "stopped"
            if self._report() and self.trial.should_prune():
                return "pruned"

    def _report(self) -> bool:
        """Tell Optuna what the training has logged since it was last asked; whether it has."""
        curve = self.curve()
        new = [
            pair
            for pair in zip(curve.step, curve.value, strict=True)
            if pair[0] not in self.reported
        ]
        for step, value in new:
            self.trial.report(value, step)
            self.reported.add(step)
        return bool(new)

    def _record(self, came: str, status: int) -> str:
        self._report()
        curve, search = self.curve(), self.sweep.search
        self._measured()
        if came == "pruned":
            self.trial.set_user_attr(STEP, curve.step[-1])
            self.queue.study.tell(self.trial, state=TrialState.PRUNED)
            return f"was pruned at step {curve.step[-1]}, {search.metric} {curve.value[-1]:.4f}"
        values = [value for value in curve.value if math.isfinite(value)]
        if status:
            return self._failed(f"status {status}: {last_line(self.log)}")
        if not values or not math.isfinite(curve.value[-1]):
            return self._failed(f"it logged no {search.metric} that is a number")
        least = min if search.direction == "minimize" else max
        value = values[-1] if search.value == "last" else least(values)
        self.trial.set_user_attr(STEP, curve.step[-1])
        self.queue.study.tell(self.trial, value)
        return f"finished, {search.metric} {value:.4f}"

    def _failed(self, why: str) -> str:
        self.trial.set_user_attr(LOG, str(self.log))
        self.trial.set_user_attr(ERROR, why)
        self.queue.study.tell(self.trial, state=TrialState.FAIL)
        return f"failed, {why} (see {self.log})"

    def _measured(self) -> None:
        """Keep what the training cost, if that was measured."""
        for path in self.folder.glob("version_*/resources.json"):
            found = json.loads(path.read_text())
            self.trial.set_user_attr(TIME, found.get("median_seconds_per_step"))
            if found.get("net"):
                self.trial.set_user_attr(COST, found["net"])

    def curve(self) -> Curve:
        """The metric, of all starts if the training goes on from checkpoints."""
        return curve_of(self.folder, self.sweep.search.metric)


def trial_folder(runs: Path, sweep: Sweep, number: int) -> Path:
    """Where everything of a trial lies."""
    return runs / sweep.name / f"trial-{number:04d}"


def versions(folder: Path) -> list[Path]:
    """The folders of a trial's starts, the newest last."""
    found = [path for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[8:]))


def curve_of(folder: Path, metric: str) -> Curve:
    """What a trial logged; of a step that was made again, the last."""
    found: dict[int, float] = {}
    for version in versions(folder):
        curve = logged(version, metric)
        found.update(zip(curve.step, curve.value, strict=True))
    steps = sorted(found)
    return Curve(steps, [found[step] for step in steps])


def end(process: subprocess.Popen[bytes]) -> None:
    """End a training, gently first, and what it has started."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
