"""Modules of the tests, run by several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_on_ranks(world: int, module: str, *arguments: str, limit_s: int = 300) -> str:
    """Start a module under torchrun, and end the whole group if it is not done in time; what it
    printed.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m"]
    process = subprocess.Popen(
        [sys.executable, *launch, module, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{module} was not done in {limit_s} s")
    assert process.returncode == 0, output
    return output


def run_on_two_ranks(module: str, folder: Path, limit_s: int = 300) -> str:
    """The same on two, with a folder to work in."""
    return run_on_ranks(2, module, str(folder), limit_s=limit_s)
