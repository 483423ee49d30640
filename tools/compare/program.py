"""`mhmoe-mm` as a process of its own, with its part of the machine and a log."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

END_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
PROGRAM = (
    sys.executable,
    "-c",
    "from tools.compare.program import end_with_parent; end_with_parent(); "
    "from mhmoe_mm.cli import main; main()",
)


class Place(NamedTuple):
    """What one run at a time has of the machine."""

    threads: int
    gpu: str | None = None
    """As CUDA_VISIBLE_DEVICES names it; None leaves the choice to the run."""


def start(
    words: Sequence[str], log: Path, where: Place, own_group: bool = False
) -> subprocess.Popen[bytes]:
    """Start `mhmoe-mm` with these words; all it says goes to the log.

    Args:
        own_group: it leads a group of processes of its own, which Ctrl-C does not reach.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(where.threads),
        "MHMOE_MM_PARENT": str(os.getpid()),
    }
    if where.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = where.gpu
    with log.open("w") as file:
        return subprocess.Popen(
            [*PROGRAM, *words],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment,
            start_new_session=own_group,
        )  # fmt: skip


def last_line(log: Path) -> str:
    """What a log ends with, which is why its program failed."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "nothing"


def end_with_parent() -> None:
    """Let this process be killed when the one that started it is gone, however that ended.

    Otherwise a training whose program was killed would go on, beside the one that takes its place.
    Nothing is done where the system has no such thing, which only Linux has.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != int(os.environ.get("MHMOE_MM_PARENT", os.getppid())):
        os.kill(os.getpid(), signal.SIGKILL)  # it was gone before that was asked for
