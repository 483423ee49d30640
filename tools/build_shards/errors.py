"""How the programs say no: one sentence on stderr and an exit code, no traceback for bad input."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from datamodules.index import ShardError

BAD_INPUT = 2
INTERRUPTED = 130


class InputError(ValueError):
    """Bad input, told as one sentence that names the file, line or key."""


@dataclass(frozen=True)
class Problem:
    """One sample that cannot be built: its id and the sentence that says why."""

    id: str
    reason: str


class Problems:
    """What to do with samples that cannot be built: refuse, or skip them and keep the list.

    Problems of a listing are gathered and refused together (`settle`), so that one run tells how
    many there are; a problem met while a shard is written is refused at once.
    """

    def __init__(self, skip: bool):
        self.skip = skip
        self.found: list[Problem] = []

    def add(self, id: str, reason: str) -> None:
        self.found.append(Problem(id, reason))

    def settle(self) -> None:
        """Raise InputError if anything was found and problems are to be refused."""
        if self.found and not self.skip:
            raise InputError(refusal(self.found))


def refusal(found: list[Problem]) -> str:
    first = found[0].reason.rstrip(".")
    if len(found) == 1:
        return f"{first} (--on-error skip builds without it)."
    return f"{first}, the first of {len(found)} problems (--on-error skip builds without them)."


def run_reporting(program: Callable[[], int], when_interrupted: str, name: str = "") -> int:
    """The exit code of `program()`, with bad input, a full disk and Ctrl-C told as one sentence,
    which begins with the program's name where that is given.
    """
    start = f"{name}: error" if name else "error"
    try:
        return program()
    except (InputError, ShardError) as error:
        print(f"{start}: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        print(f"{start}: {where}{reason}; nothing half-written was left behind.", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(when_interrupted, file=sys.stderr)
        return INTERRUPTED


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of `names`, for a sentence."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
