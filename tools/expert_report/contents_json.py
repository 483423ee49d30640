"""Contents of reports to JSON and back."""

import json
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from mhmoe_mm.storage.whole import write_text
from tools.expert_report.contents import VERSION, RunContents


def write_contents(contents: Sequence[RunContents], path: Path) -> None:
    """A list of runs as JSON; a number that is not finite becomes null."""
    write_text(path, json.dumps([plain(run) for run in contents], ensure_ascii=False))


def read_contents(path: Path) -> list[RunContents]:
    """The runs of a file of `write_contents`.

    Raises:
        ValueError: it is not such a file, or of another version.
    """
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as the contents of a report: {error}") from error
    versions = {run.get("version") if isinstance(run, dict) else None for run in _listed(given)}
    if versions != {VERSION}:
        raise ValueError(
            f"{path} does not hold contents of a report in version {VERSION}: make it again with "
            "`python -m tools.expert_report ... --json FILE`."
        )
    try:
        return [_made(RunContents, run) for run in given]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}.") from error


def plain(value: Any) -> Any:
    """A record as dictionaries, lists, numbers and strings."""
    if hasattr(value, "_fields"):
        return {name: plain(getattr(value, name)) for name in value._fields}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) and given else [None]


def _made(kind: Any, given: Any) -> Any:
    """`given` as a value of the type `kind`."""
    if hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        there = (name for name in kind._fields if name in given or name not in kind._field_defaults)
        return kind(**{name: _made(hints[name], given[name]) for name in there})
    if get_origin(kind) in (Union, types.UnionType):
        if given is None:
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return _made(kind, given)
    if get_origin(kind) is tuple:
        (item, *_) = get_args(kind)
        return tuple(_made(item, part) for part in given)
    return kind(given)
