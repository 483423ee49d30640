"""Search over the keys of a configuration.

    python -m tools.sweep run conf/sweeps/heads_x_experts.yaml --jobs 2
    python -m tools.sweep report conf/sweeps/heads_x_experts.yaml

A sweep file says what is trained and what is varied (tools/sweep/sweep.py shows one). `run` begins
trials until the budget is spent; it goes on where it was stopped or killed, and several of it, on
one machine or on many, share the trials. `report` writes what is known by now.
"""

import argparse
import importlib.util
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mhmoe_mm.command_line.resume import RUNS

ENDED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit status: 0, 1 if a trial failed, 2 if the command line was refused, 130
    or 143 if it was told to end.
    """
    given = _arguments(argv)
    if importlib.util.find_spec("optuna") is None:
        print("sweep: error: Optuna is missing: pip install 'mhmoe-mm[sweep]'.", file=sys.stderr)
        return 2
    try:
        return _work(given)
    except ValueError as error:
        print(f"sweep: error: {error}", file=sys.stderr)
        return 2


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.sweep", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="begin trials until the budget is spent")
    run.add_argument("--jobs", type=int, default=1, help="trials at a time on this machine (1)")
    run.add_argument("--trials", type=int, help="instead of the file's budget of trials")
    report = commands.add_parser("report", help="write the table, the figures and best.yaml")
    for command in (run, report):
        command.add_argument("sweep", type=Path, help="a file such as those of conf/sweeps")
        command.add_argument(
            "--runs", type=Path, default=RUNS, help="the folder of all runs (runs)"
        )
        command.add_argument(
            "--storage",
            help="a database such as postgresql://..., or a journal's path; without it a journal "
            "in the sweep's folder",
        )
    return parser.parse_args(argv)


def _work(given: argparse.Namespace) -> int:
    from tools.sweep.records import records
    from tools.sweep.report import write_report
    from tools.sweep.storage import open_study
    from tools.sweep.sweep import read_sweep

    sweep, running = read_sweep(given.sweep), given.command == "run"
    if running:
        if given.jobs < 1 or (given.trials is not None and given.trials < 1):
            raise ValueError("--jobs and --trials are at least 1.")
        if given.trials is not None:
            sweep = replace(sweep, budget=replace(sweep.budget, trials=given.trials))
    study = open_study(sweep, given.storage, given.runs, make=running)
    status = _run(sweep, study, given.jobs, given.runs) if running else 0
    options = ["--runs", str(given.runs)] if given.runs != RUNS else []
    command = shlex.join(["python", "-m", "tools.sweep", "run", str(given.sweep), *options])
    for line in write_report(sweep, study, given.runs, command):
        print(line)
    failed = any(record.state == "failed" for record in records(study.trials))
    return status or int(failed and running)


def _run(sweep, study, jobs: int, runs: Path) -> int:
    """Begin trials until there are no more; 0, or the status of the signal that ended it."""
    from tools.compare.places import places
    from tools.sweep.queue import Queue, Worker
    from tools.sweep.trials import Trial

    worker = Worker(runs / sweep.name / "workers")
    queue, free = Queue(study, sweep.budget, worker), places(jobs)

    def work(stop: threading.Event) -> None:
        place = free.get()
        try:
            while not stop.is_set() and (taken := queue.take()) is not None:
                print(Trial(sweep, queue, taken, runs, stop).carry_out(place), flush=True)
        except BaseException:
            stop.set()
            raise

    try:
        with _told_to_end() as (stop, told), ThreadPoolExecutor(jobs) as pool:
            for future in [pool.submit(work, stop) for _ in range(jobs)]:
                future.result()
    finally:
        worker.leave()
    if told:
        print("Ended: what was running is put back, and the same command goes on with it.")
    return ENDED[told[0]] if told else 0


@contextmanager
def _told_to_end():
    """(what is set when this program is to end, the signals that said so)."""
    stop, told = threading.Event(), []

    def handle(number: int, frame: object) -> None:
        told.append(number)
        stop.set()

    before = {number: signal.signal(number, handle) for number in ENDED}
    try:
        yield stop, told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
