"""Modules of the tests, run by several processes.

They are forked from one process that has imported what they need: importing it takes each rank
longer than most of what the tests ask of it. What torchrun gives its ranks they are given, too: the
same variables, and a store that is there before them and after them.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[1]
PRELOADED = ("mhmoe_mm.cli", "datamodules.shards", "datamodules.fine_tuning", "datamodules.text")
_ranks = multiprocessing.get_context("forkserver")
_ranks.set_forkserver_preload(list(PRELOADED))


def run_on_ranks(world: int, module: str, *arguments: str, limit_s: int = 300) -> str:
    """Run a module on ranks, and end all of them if one fails or they are not done in time; what
    they printed.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = os.environ | {
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
    }
    with TemporaryDirectory() as folder:
        printed = Path(folder) / "printed"
        printed.touch()
        processes = [
            _ranks.Process(
                target=_rank,
                args=(
                    module, arguments, printed,
                    shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                ),
            )
            for rank in range(world)
        ]  # fmt: skip
        for process in processes:
            process.start()
        in_time = _end(processes, time.monotonic() + limit_s)
        output = printed.read_text(errors="replace")
    if not in_time:
        pytest.fail(f"{module} was not done in {limit_s} s:\n{output}")
    assert [process.exitcode for process in processes] == [0] * world, output
    return output


def run_on_two_ranks(module: str, folder: Path, limit_s: int = 300) -> str:
    """The same on two, with a folder to work in."""
    return run_on_ranks(2, module, str(folder), limit_s=limit_s)


def torchrun(world: int, module: str, *arguments: str, limit_s: int = 300) -> str:
    """As `run_on_ranks`, each rank a program of its own that torchrun starts, for what depends on
    how a rank came to be.
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


def _rank(module: str, arguments: tuple[str, ...], printed: Path, environ: dict[str, str]) -> None:
    """What one rank does, in a session of its own."""
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environ)
    output = os.open(printed, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out


def _end(processes: list[ForkServerProcess], deadline: float) -> bool:
    """Wait until all are done or one has failed; whether that was in time. None is left."""
    try:
        while any(process.is_alive() for process in processes):
            if any(process.exitcode for process in processes):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True
    finally:
        for process in processes:
            if process.pid is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
