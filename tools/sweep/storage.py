"""Where the trials of a sweep are written down: a journal in a file, or a database."""

import fcntl
import os
from pathlib import Path
from typing import IO

import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.storages.journal._file import BaseJournalFileLock

from tools.sweep.sampler import sampler_of
from tools.sweep.sweep import Sweep

JOURNAL = "journal.log"


class Lock(BaseJournalFileLock):
    """Of a journal, while something is added to it: held by one process at a time, and let go of by
    the system when that process is gone.

    Optuna's own locks are files, which outlive who held them: others would wait for half a minute.
    """

    def __init__(self, journal: Path):
        self.journal, self.handle = journal, -1

    def acquire(self) -> bool:
        handle = os.open(f"{self.journal}.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self.handle = handle
        with self.journal.open("rb+") as file:
            _cut_half_a_line(file)
        return True

    def release(self) -> None:
        os.close(self.handle)


def _cut_half_a_line(file: IO[bytes]) -> None:
    """Cut off what a writer left that was killed within a line."""
    end = file.seek(0, os.SEEK_END)
    keep = end
    while keep:
        file.seek(keep - 1)
        if file.read(1) == b"\n":
            break
        keep -= 1
    if keep < end:
        file.truncate(keep)


def open_study(sweep: Sweep, storage: str | None, runs: Path, make: bool = True) -> optuna.Study:
    """The study of a sweep.

    Args:
        storage: an address such as `postgresql://...` or `sqlite:///...`, the path of a journal, or
            None for the journal in the sweep's folder.
        make: whether to make it where it is not there.

    Raises:
        ValueError: it is not there, or it is one of another sweep; one sentence.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = str(runs / sweep.name / JOURNAL) if storage is None else storage
    name, sampler = sweep.name, sampler_of(sweep)
    if "://" not in place and not make and not Path(place).exists():
        raise ValueError(f"{place} is not there: no trial of {name} was begun.")
    known = optuna.storages.get_storage(place) if "://" in place else _journal(Path(place))
    try:
        if make:
            study = optuna.create_study(
                storage=known, study_name=name, load_if_exists=True, sampler=sampler,
                pruner=pruner_of(sweep), direction=sweep.search.direction,
            )  # fmt: skip
        else:
            study = optuna.load_study(study_name=name, storage=known, sampler=sampler)
    except KeyError as error:
        raise ValueError(f"There is no study {name} there: no trial was begun.") from error
    asked = study.user_attrs.get("asked")
    if asked is None and make:
        study.set_user_attr("asked", sweep.asked)
    elif asked != sweep.asked:
        raise ValueError(
            f"the study {name} was begun with another file, or with other YAML files that it "
            "names: put back what was there, or give the sweep another name."
        )
    return study


def _journal(path: Path) -> JournalStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), Lock(path)))


def pruner_of(sweep: Sweep) -> optuna.pruners.BasePruner:
    """What ends trials early."""
    asked = sweep.search.pruner
    if asked is None:
        return optuna.pruners.NopPruner()
    return optuna.pruners.MedianPruner(asked.startup_trials, asked.warmup_steps)
