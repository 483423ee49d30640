"""What went wrong, in one sentence.

Errors that a user can mend (a key, a value, a file, sizes that do not fit) become one line.
Everything else is a bug of ours and keeps its traceback.
"""

import re
from collections.abc import Sequence
from types import TracebackType

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mhmoe_mm.command_line.refusals import Refused, refusal, where
from mhmoe_mm.command_line.sources import Sources

MENDABLE = (
    Refused,
    ValueError,
    OSError,
    FloatingPointError,
    MisconfigurationException,
    OmegaConfBaseException,
    YAMLError,
)
"""Errors that name something a user can change. RuntimeError, TypeError, AssertionError and the
rest are bugs."""

WORKER = re.compile(r"^Caught \w+ in \w+ worker process \d+\.\nOriginal Traceback", re.MULTILINE)


def sentence(error: BaseException, sources: Sources, ours: Sequence[str]) -> str | None:
    """One line for the user, or None for a bug, whose traceback should be shown.

    `ours` are the packages whose messages are written for users; an error raised elsewhere says
    where it comes from.
    """
    first = origin(error)
    misfit = isinstance(first, RuntimeError) and str(first).startswith(
        "Error(s) in loading state_dict"
    )
    if not misfit and not isinstance(first, MENDABLE):
        return None
    if isinstance(first, Refused):
        text = refusal(first, sources)
    elif isinstance(first, OmegaConfBaseException):
        text = _interpolation(first, sources)
    elif WORKER.search(str(first)):
        text = _worker_message(str(first))
    elif misfit:
        _, reason, *more = str(first).splitlines()
        text = f"The checkpoint does not fit this model: {reason.strip()} ({len(more)} more)"
    elif isinstance(first, OSError) and first.strerror and first.filename:
        text = f"{first.filename}: {first.strerror}."
    else:
        module = _raised_in(first.__traceback__)
        text = str(first) or type(first).__name__
        if not f"{module}.".startswith(tuple(f"{package}." for package in (*ours, "lightning"))):
            text += f" (raised in {module}; --debug shows the traceback)"
    return " ".join(text.split())


def origin(error: BaseException) -> BaseException:
    """The first error in the chain of causes that jsonargparse did not make itself while building
    objects."""
    seen: BaseException | None = error
    while seen is not None and _raised_in(seen.__traceback__).startswith("jsonargparse"):
        seen = seen.__cause__
    return seen or error


def _raised_in(trace: TracebackType | None) -> str:
    """The module whose code raised."""
    name = "the command line"
    while trace is not None:
        name = trace.tb_frame.f_globals.get("__name__", name)
        trace = trace.tb_next
    return name


def _interpolation(error: OmegaConfBaseException, sources: Sources) -> str:
    problem = str(error).splitlines()[0]
    key = re.search(r"full_key: (\S+)", str(error))
    if key is None:
        return problem
    path = [part for part in key[1].split(".")[1:] if part != "init_args"]
    if missing := re.search(r"resolved to '(?:\w+\.)?([\w.]+)'", problem):
        problem = f"its ${{...}} refers to {missing[1]}, and there is no such key"
    return f"{where(path, sources)}{problem}."


def _worker_message(text: str) -> str:
    """What a data worker said, without the traceback that came with it."""
    last = [
        i
        for i, line in enumerate(text.splitlines())
        if re.match(r"[\w.]+(Error|Exception)?: ", line)
    ]
    lines = text.splitlines()[last[-1] :] if last else text.splitlines()[-1:]
    return re.sub(r"^[\w.]+: ", "", " ".join(lines))
