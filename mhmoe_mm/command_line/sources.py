"""Where a key of the configuration was written: which file and line, or the command line."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

ENVIRONMENT = re.compile(r"\$\{oc\.env:\s*([A-Za-z_]\w*)")


class Text(NamedTuple):
    """A piece of YAML that the configuration was made from."""

    file: Path | None
    """None if it was given on the command line."""
    content: str
    at: list[str]
    """The key that it was included at, without `init_args`."""


class Sources:
    """The texts that a configuration was made from: the command line, its `--config` files and what
    they include."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = list(argv)
        self.texts: list[Text] = []
        for flag, value in _pairs(self.argv):
            if flag in ("-c", "--config"):
                self._add(Path(value), [])
                if value.startswith("{"):
                    self.texts.append(Text(None, value, []))
            elif value.endswith((".yaml", ".yml")):
                self._add(Path(value), _bare(flag[2:].split(".")))

    def place(self, path: Sequence[str]) -> str | None:
        """Where the key `path` (without `init_args`) was last written, or None if nowhere."""
        for flag, _ in _pairs(self.argv):
            if _bare(flag.lstrip("-").rstrip("+").split("."))[: len(path)] == list(path):
                return flag
        for text in reversed(self.texts):
            for written, line in reversed(list(_keys(text))):
                if written == list(path):
                    return f"{text.file}:{line}" if text.file else "command line"
        return None

    def broken_file(self) -> str | None:
        """The first text that is not YAML, with the line and what is wrong there."""
        for text in self.texts:
            try:
                yaml.compose(text.content)
            except yaml.MarkedYAMLError as error:
                line = error.problem_mark.line + 1 if error.problem_mark else 1
                return f"{text.file or 'command line'}:{line}: {error.problem}."
        return None

    def environment(self) -> set[str]:
        """Names of the environment variables that `${oc.env:NAME}` refers to."""
        texts = [*self.argv, *(text.content for text in self.texts)]
        return {name for text in texts for name in ENVIRONMENT.findall(text)}

    def _add(self, file: Path, at: list[str]) -> None:
        file = Path(os.path.normpath(file))
        try:
            text = Text(file, file.read_text(), at)
        except (OSError, UnicodeDecodeError):  # jsonargparse says what is wrong with it
            return
        if text in self.texts:
            return
        self.texts.append(text)
        for path, _, value in _entries(text):
            if value.endswith((".yaml", ".yml")):
                self._add(file.parent / value, path)


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, however the two were joined."""
    for position, token in enumerate(argv):
        if token.startswith("-"):
            flag, equals, value = token.partition("=")
            following = argv[position + 1] if position + 1 < len(argv) else ""
            yield flag, value if equals else following


def _bare(path: Sequence[str]) -> list[str]:
    return [part for part in path if part != "init_args"]


def _keys(text: Text) -> Iterator[tuple[list[str], int]]:
    """Every key of the text with its line."""
    for path, line, _ in _entries(text):
        yield path, line


def _entries(text: Text) -> Iterator[tuple[list[str], int, str]]:
    """Every key of the text as a path without `init_args`, with its line and its value if that is a
    scalar."""

    def walk(node: yaml.Node | None, path: list[str]) -> Iterator[tuple[list[str], int, str]]:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                if isinstance(item, yaml.ScalarNode):
                    yield _bare(path), item.start_mark.line + 1, item.value
                yield from walk(item, path)
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = [*path, str(key.value)]
                scalar = value.value if isinstance(value, yaml.ScalarNode) else ""
                yield _bare(here), key.start_mark.line + 1, scalar
                yield from walk(value, here)

    try:
        tree = yaml.compose(text.content)
    except yaml.YAMLError:
        return
    yield from walk(tree, text.at)
