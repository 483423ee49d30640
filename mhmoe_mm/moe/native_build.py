"""Compiles what lies in `native/` for this processor, once, and loads it.

The library is kept in the folder of torch's own extensions (TORCH_EXTENSIONS_DIR, or a folder of
the user's cache), under a name that says what it was made of: sources, compiler, flags, torch and
processor. Several processes may compile it at once; the last one's file stays.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "native"
_TORCH = Path(torch.__file__).parent
FLAGS = (
    "-std=c++20", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-w",
    "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing",
)  # fmt: skip


class NotBuilt(RuntimeError):
    """The library cannot be had here; the message says why and what to do."""


@cache
def library() -> ctypes.CDLL:
    """The library of this machine; compiled if it is not there, which takes seconds.

    Raises:
        NotBuilt: no compiler, or it fails.
    """
    compiler = os.environ.get("CXX", "c++")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    except OSError as error:
        raise NotBuilt(
            f"there is no C++ compiler {compiler!r} ({error.strerror}): install g++, or name "
            "another one in CXX"
        ) from error
    file = _folder() / f"experts-{_key(version.stdout)}.so"
    if not file.exists():
        _compile(compiler, file)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise NotBuilt(
            f"the compiled library cannot be loaded: {error}; remove {file}, and it is made again"
        ) from error


def _folder() -> Path:
    cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get("TORCH_EXTENSIONS_DIR") or f"{cache_home}/torch_extensions"
    return Path(root).expanduser() / "mhmoe_mm"


def _key(compiler: str) -> str:
    """A name for all that the library depends on."""
    made_of = [compiler, *FLAGS, torch.__version__, platform.machine(), _processor()]
    made_of += [file.read_text() for file in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]


def _processor() -> str:
    """What instructions it has: a folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(compiler: str, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=file.parent)
    except OSError as error:
        raise NotBuilt(
            f"the folder {file.parent} cannot be written ({error.strerror}): name another one in "
            "TORCH_EXTENSIONS_DIR"
        ) from error
    with folder:
        made = Path(folder.name) / file.name
        command = [compiler, *FLAGS, f"-I{_TORCH / 'include'}", str(SOURCES / "experts.cpp")]
        command += ["-o", str(made), f"-L{_TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[:10])
            raise NotBuilt(f"{compiler} does not compile {SOURCES}:\n{said}")
        made.replace(file)
