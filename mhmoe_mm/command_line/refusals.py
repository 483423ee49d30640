"""What the parser refused, in one sentence with the place, the key and the closest valid one.

jsonargparse explains a refusal by nesting every type that it tried. The chain of causes behind it
ends in the actual reason; on the way down it names the key, part by part, and the class whose
parameters were read.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence

from jsonargparse import ArgumentParser

from mhmoe_mm.command_line.sources import Sources

KEY = re.compile(r'Parser key "([^"]+)"')
CLASS = re.compile(r"class_path[ =]'([\w.]+)'")
UNKNOWN = re.compile(
    r"(?:Option|does not accept option) '([^']+)'|unrecognized arguments: --([^\s=]+)"
)


class Refused(Exception):
    """The parser refused the command line or a configuration."""

    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


def refusal(error: Refused, sources: Sources) -> str:
    """One sentence: where it was written, which key, why not, and what may have been meant."""
    chain = list(_causes(error))
    reason = str(chain[-1])
    path = [
        part
        for cause in chain
        if isinstance(cause, TypeError) and (key := KEY.match(str(cause)))
        for part in key[1].split(".")
        if key[1] != "config"
    ]
    if (broken := sources.broken_file()) and "Problems parsing config" in str(error):
        return broken
    if unknown := UNKNOWN.search(reason):
        return _unknown(path, unknown[1] or unknown[2], chain, error.parser, sources)
    if missing := re.search(r"the following arguments are required: (.*)", reason):
        names = [".".join([*path, _without_command(name)]) for name in missing[1].split(", ")]
        return f"{' and '.join(names)} must be given, by --config FILE or by --KEY VALUE."
    return f"{where(path, sources)}{_reason(chain)}"


def where(path: Sequence[str], sources: Sources) -> str:
    """The start of a sentence about a key: the place where it was written and its name."""
    place = next(
        (found for end in range(len(path), 0, -1) if (found := sources.place(path[:end]))), None
    )
    if place and place.startswith("--"):
        return f"{place}: "
    return "".join(f"{part}: " for part in (place, ".".join(path)) if part)


def _unknown(
    path: list[str],
    key: str,
    chain: Sequence[BaseException],
    parser: ArgumentParser,
    sources: Sources,
) -> str:
    """A key that nothing reads."""
    owner = next(
        (found[1] for cause in reversed(chain) if (found := CLASS.search(str(cause)))), None
    )
    if owner is None:
        valid = _options(parser)
    else:
        key = key.split(".")[0]
        valid = _parameters(owner)
    full = [*path, *key.split(".")]
    reader = f"{owner} has no parameter" if owner else "there is no key"
    name = key if owner else ".".join(full)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    meant = f"; did you mean '{close[0]}'?" if close else "."
    if owner and not close and valid:
        meant = f"; it has {', '.join(valid)}."
    return f"{where(full, sources)}{reader} '{name}'{meant}"


def _reason(chain: Sequence[BaseException]) -> str:
    """Why a value was refused."""
    text = str(chain[-1])
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", text):
        package = denied[1].partition(".")[0]
        trust = f"if you trust the package, add `--plugin {package}`"
        return f"{denied[1]} may not be imported from a configuration; {trust}."
    if path := re.search(
        r"(?:Unexpected import path format|Expected a dot import path string): (\S+)", text
    ):
        given = next(
            (found[1] for c in chain if (found := re.search(r"Expected a path but (\S+)", str(c)))),
            path[1],
        )
        what = (
            "no such file"
            if given.endswith((".yaml", ".yml"))
            else "neither a class path nor a YAML file"
        )
        return f"{what}: {given}."
    if attribute := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        close = difflib.get_close_matches(attribute[2], dir(sys.modules.get(attribute[1])), n=1)
        return (
            f"{attribute[1]} has no {attribute[2]}{f'; did you mean {close[0]}?' if close else '.'}"
        )
    if text.startswith("Expected a "):
        above = str(chain[-2]).lstrip("\n- ")
        union = re.match(r"(?s).*?Does not validate.*?Subtypes: \[(.*?)\]\n", above)
        kinds, _, value = text.removeprefix("Expected a ").partition(". Got value: ")
        return f"expected {_words(union[1] if union else kinds)}, got '{value}'."
    return text.replace("unrecognized arguments", "unexpected argument").rstrip(".") + "."


def _words(types: str) -> str:
    """Types as words: `<class 'int'>, <class 'NoneType'>` is `int, null`."""
    types = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", types).replace("NoneType", "null")
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", types)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _options(parser: ArgumentParser) -> list[str]:
    """The keys that a command reads; the parser of all commands answers for its first."""
    for action in parser._actions:
        if isinstance(action.choices, dict):
            parser = next(iter(action.choices.values()))
    return [action.dest for action in parser._actions]


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    owner = getattr(sys.modules.get(module), name, None)
    return list(inspect.signature(owner).parameters) if callable(owner) else []


def _without_command(name: str) -> str:
    return re.sub(r"^(fit|validate|test|predict)\.", "", name)
