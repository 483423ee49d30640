"""The moment when a block of a network is built, for who wants its memory at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import nn

T = TypeVar("T", bound=nn.Module)
_TAKEN: ContextVar[Callable[[nn.Module], object] | None] = ContextVar("taken", default=None)


def part(module: T) -> T:
    """A block that is finished, before the next one is begun. Networks build theirs so."""
    if taken := _TAKEN.get():
        taken(module)
    return module


@contextmanager
def each_part(taken: Callable[[nn.Module], object]) -> Iterator[None]:
    """Networks that are built inside hand every block over as soon as it is finished."""
    token = _TAKEN.set(taken)
    try:
        yield
    finally:
        _TAKEN.reset(token)
