"""NLVR2: one JSON object a line, and the images of its pairs.

    {"identifier": "dev-850-0-1", "sentence": "...", "label": "True", "directory": 17 (train), ...}
    images/train/17/train-1-2-img0.png, dev/dev-850-0-img0.png, test1/test1-1-0-img1.png

The sentences about a pair of images lie in one sample, so that its images are stored once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tools.build_shards.annotations import (
    ImageFile,
    find_image,
    hashes,
    need_folder,
    read_json_lines,
    split_paths,
    value,
)
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.files import read_file
from tools.build_shards.source import Item, Source, one_line


@contextmanager
def open_nlvr2(examples: list[str], images: Path, problems: Problems) -> Iterator[Source]:
    """One item per pair of images."""
    files = split_paths(examples, "--examples")
    root = need_folder(images)
    items = [item for split, path in files.items() for item in _items(split, path, root, problems)]
    yield Source("nlvr2", tuple(items), hashes(files.values()))


def _items(split: str, path: Path, root: Path, problems: Problems) -> Iterator[Item]:
    statements: dict[str, list[dict[str, str | bool]]] = {}
    directories: dict[str, str] = {}
    seen: set[str] = set()
    for where, entry in read_json_lines(path, problems):
        try:
            statement = _statement(entry, where, seen)
        except InputError as error:
            problems.add(str(entry.get("identifier", where)), str(error))
            continue
        pair = str(statement["identifier"]).rpartition("-")[0]
        statements.setdefault(pair, []).append(statement)
        directories[pair] = str(entry.get("directory", ""))
    for pair, about in statements.items():
        where = f"{path.name}, pair {pair}"
        try:
            left, right = (
                _image(root, f"{pair}-img{side}.png", directories[pair], where) for side in (0, 1)
            )
        except InputError as error:
            problems.add(pair, f"{str(error)[:-1]}; it has {len(about)} sentences.")
            continue
        yield Item(
            id=f"{split}/{pair}",
            split=split,
            captions={"en": tuple(str(statement["sentence"]) for statement in about)},
            read=partial(read_file, left.path),
            right=partial(read_file, right.path),
            where=where,
            size=left.size + right.size,
            stamp=f"{left.stamp} {right.stamp}",
            extra={"statements": about},
        )


def _statement(entry: Mapping[str, Any], where: str, seen: set[str]) -> dict[str, str | bool]:
    identifier = value(entry, "identifier", str, where)
    if len(identifier.split("-")) != 4:
        raise InputError(
            f"{where} has the identifier {identifier}, which is not split-set-pair-sentence."
        )
    if identifier in seen:
        raise InputError(f"{where} has the identifier {identifier} again.")
    seen.add(identifier)
    sentence = one_line(value(entry, "sentence", str, where))
    if not sentence:
        raise InputError(f"{where} ({identifier}) has an empty sentence.")
    label = str(entry.get("label")).lower()
    if label not in ("true", "false"):
        raise InputError(
            f'{where} ({identifier}) must have the label "True" or "False", not '
            f"{entry.get('label')!r:.40}."
        )
    return {"identifier": identifier, "sentence": sentence, "label": label == "true"}


def _image(root: Path, name: str, directory: str, where: str) -> ImageFile:
    """An image in the layouts in which the data set is handed out; `.png` may hold a JPEG."""
    split = name.partition("-")[0]
    folders = [f"train/{directory}", directory] if directory else [split]
    names = [f"{prefix}{folder}/{name}" for folder in folders for prefix in ("", "images/")]
    return find_image(root, [*names, name], where)
