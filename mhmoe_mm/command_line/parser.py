"""The parser: refusals as exceptions, and no class read twice.

jsonargparse reads what a nested class is given once for every purpose (defaults, merging, checking)
and at every level, so a class three levels deep is read dozens of times: 400 readings for a
retrieval run, of which 180 differ. While a command line is parsed, what a reading came to is
remembered: 0.6 s instead of 2.1.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mhmoe_mm.command_line.refusals import Refused


class Parser(LightningArgumentParser):
    """Raises what it refuses, so that the program can say it in one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:
            super().error(message, ex)
        raise Refused(message, self) from ex

    def parse_object(
        self,
        obj: Namespace | dict[str, Any],
        namespace: Namespace | None = None,
        env: bool | None = None,
        defaults: bool = True,
        **kwargs: Any,
    ) -> Namespace:
        """As jsonargparse's; the same again within `remembering` is answered from memory."""
        memory = _MEMORY.get()
        if memory is None:
            return super().parse_object(obj, namespace, env, defaults, **kwargs)
        # jsonargparse keeps in context variables what the reading is for.
        around = {var.name: value for var, value in copy_context().items() if var is not _MEMORY}
        given = (obj, namespace, env, defaults, kwargs, around)
        key = (id(self), _plain(given))
        if key not in memory:
            # The objects whose ids are in the key are kept, so that no other gets the same.
            copies = [one and one.clone() if isinstance(one, Namespace) else one for one in given]
            read = super().parse_object(obj, namespace, env, defaults, **kwargs)
            memory[key] = (read.clone(), (self, copies))
            return read
        return memory[key][0].clone()


_MEMORY: ContextVar[dict[Hashable, tuple[Namespace, Any]] | None] = ContextVar(
    "memory", default=None
)


@contextmanager
def remembering() -> Iterator[None]:
    """What parsers read inside is remembered until the end: files and variables of the environment
    must not change meanwhile.
    """
    token = _MEMORY.set({})
    try:
        yield
    finally:
        _MEMORY.reset(token)


def _plain(value: Any) -> Hashable:
    """Equal for equal values; what is neither a container nor plain is told by its identity."""
    if isinstance(value, Namespace):
        return "namespace", _plain(vars(value))
    if isinstance(value, dict):
        return "dict", tuple((_plain(name), _plain(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_plain, value))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value), value
    return "object", id(value)
