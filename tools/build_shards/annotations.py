"""What the official annotation formats have in common: JSON files per split, folders of images."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhmoe_mm.storage.whole import file_sha256
from tools.build_shards.captions import is_safe
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.source import SPLITS


@dataclass(frozen=True)
class ImageFile:
    """An image that was found: where, and what tells whether it has changed."""

    path: Path
    size: int
    stamp: str


def split_paths(texts: Iterable[str] | None, option: str) -> dict[str, Path]:
    """`train=FILE val=FILE` as split -> path; each must exist."""
    paths: dict[str, Path] = {}
    for text in texts or ():
        split, equals, path = text.partition("=")
        if not equals or split not in SPLITS:
            raise InputError(
                f"{option} {text}: give SPLIT=PATH, where SPLIT is train, val or test."
            )
        if split in paths:
            raise InputError(f"{option} names the split {split} twice.")
        if not Path(path).exists():
            raise InputError(f"{option} {text}: {path} does not exist.")
        paths[split] = Path(path)
    return paths


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """File names with their sha256, for the card; the folder is added where names are equal."""
    paths = list(paths)
    names = [path.name for path in paths]
    return {
        path.name if names.count(path.name) == 1 else path.as_posix(): file_sha256(path)
        for path in paths
    }


def read_json(path: Path) -> Any:
    """A whole JSON file; InputError with line and column where it is broken."""
    return parsed_json(_text(path), str(path))


def read_json_lines(path: Path, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(`file line 3`, object) of each line that is not blank; broken ones go to `problems`."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        where = f"{path.name} line {number}"
        if not line.strip():
            continue
        try:
            record = parsed_json(line, where)
        except InputError as error:
            problems.add(where, str(error))
            continue
        if isinstance(record, dict):
            yield where, record
        else:
            problems.add(where, f"{where} is not an object.")


def entries(content: Any, field: str | None, path: Path) -> Iterator[tuple[str, Any]]:
    """(`file entry 3`, entry) of a list of objects, or of the list in a field of an object."""
    listed = content
    if field is not None:
        listed = content.get(field) if isinstance(content, dict) else None
    if not isinstance(listed, list):
        what = f'has no list "{field}"' if field else "is not a list"
        raise InputError(f"{path} {what}.")
    for number, entry in enumerate(listed):
        where = f"{path.name} entry {number}" if field is None else f"{path.name} {field}[{number}]"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is not an object.")
        yield where, entry


def value(entry: Mapping[str, Any], field: str, kind: type, where: str) -> Any:
    """A field that must be there and of a kind; InputError names the entry."""
    found = entry.get(field)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        words = {int: "a whole number", str: "a text", list: "a list"}
        raise InputError(f'{where} must have "{field}", {words[kind]}, not {found!r:.80}.')
    return found


def find_image(root: Path, names: Iterable[str], where: str) -> ImageFile:
    """The first of `names` that is a file below `root`; InputError says where it was looked for."""
    names = list(dict.fromkeys(names))
    for name in names:
        if not is_safe(name):
            raise InputError(f"{where} has the unsafe image path {name}.")
        path = root / name
        if path.is_file():
            status = os.stat(path)
            return ImageFile(path, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")
    raise InputError(f"{where} names an image that is missing in {root}: {' or '.join(names)}.")


def need_folder(path: Path) -> Path:
    """`path`, if it is a folder."""
    if not path.is_dir():
        raise InputError(f"{path} does not exist or is not a folder.")
    return path


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}).") from error


def parsed_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno} column {error.colno}"
        raise InputError(f"{where} is not JSON: {error.msg} at {at}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}).") from error
