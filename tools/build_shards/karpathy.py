"""Captions of COCO and Flickr30k: the split of Karpathy, and COCO's own caption files.

dataset_coco.json, dataset_flickr30k.json
    {"images": [{"filename", "filepath" (COCO), "split", "cocoid" or "imgid",
                 "sentences": [{"raw"}, ...]}]}
captions_train2014.json
    {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tools.build_shards.annotations import (
    entries,
    find_image,
    hashes,
    need_folder,
    read_json,
    split_paths,
    value,
)
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.files import read_file
from tools.build_shards.source import Item, Source, one_line

SPLIT_NAMES = {"train": "train", "restval": "train", "val": "val", "test": "test"}


@contextmanager
def open_karpathy(name: str, path: Path, images: Path, problems: Problems) -> Iterator[Source]:
    """The images of a Karpathy file; COCO's `restval` belongs to `train`."""
    items = list(_karpathy_items(path, need_folder(images), problems))
    yield Source(name, tuple(items), hashes([path]))


@contextmanager
def open_coco_captions(captions: list[str], images: Path, problems: Problems) -> Iterator[Source]:
    """The images of COCO's own caption files, one file per split."""
    files = split_paths(captions, "--captions")
    if not files:
        raise InputError("coco-captions needs --karpathy FILE, or --captions SPLIT=FILE.")
    root = need_folder(images)
    items = [
        item for split, path in files.items() for item in _coco_items(split, path, root, problems)
    ]
    yield Source("coco-captions", tuple(items), hashes(files.values()))


def _karpathy_items(path: Path, root: Path, problems: Problems) -> Iterator[Item]:
    seen: set[int] = set()
    for where, entry in entries(read_json(path), "images", path):
        try:
            id = value(entry, "cocoid" if "cocoid" in entry else "imgid", int, where)
            if id in seen:
                raise InputError(f"{where} has the image id {id} again.")
            seen.add(id)
            split = SPLIT_NAMES.get(str(entry.get("split")))
            if split is None:
                raise InputError(
                    f"{where} has the split {entry.get('split')!r};"
                    f" known are {', '.join(SPLIT_NAMES)}."
                )
            sentences = value(entry, "sentences", list, where)
            texts = [s.get("raw") if isinstance(s, dict) else None for s in sentences]
            filename = value(entry, "filename", str, where)
            names = [f"{entry['filepath']}/{filename}"] if entry.get("filepath") else []
            yield _item(id, split, texts, root, [*names, filename], where)
        except InputError as error:
            problems.add(str(entry.get("filename", where)), str(error))


def _coco_items(split: str, path: Path, root: Path, problems: Problems) -> Iterator[Item]:
    content = read_json(path)
    texts = _captions_by_image(content, path, problems)
    # captions_train2014.json is about the folder train2014.
    folder = path.stem.rpartition("_")[2]
    seen: set[int] = set()
    for where, entry in entries(content, "images", path):
        try:
            id = value(entry, "id", int, where)
            if id in seen:
                raise InputError(f"{where} has the image id {id} again.")
            seen.add(id)
            filename = value(entry, "file_name", str, where)
            names = [f"{folder}/{filename}", filename]
            yield _item(id, split, texts.get(id, []), root, names, where)
        except InputError as error:
            problems.add(f"{split}/{entry.get('id', where)}", str(error))
    for id in sorted(texts.keys() - seen):
        reason = f"{path.name} has {len(texts[id])} captions of image {id}, which it does not list."
        problems.add(f"{split}/{id}", reason)


def _captions_by_image(content: Any, path: Path, problems: Problems) -> dict[int, list[str]]:
    texts: dict[int, list[str]] = {}
    seen: set[int] = set()
    for where, entry in entries(content, "annotations", path):
        try:
            id = value(entry, "id", int, where)
            if id in seen:
                raise InputError(f"{where} has the caption id {id} again.")
            seen.add(id)
            caption = value(entry, "caption", str, where)
            texts.setdefault(value(entry, "image_id", int, where), []).append(caption)
        except InputError as error:
            problems.add(where, str(error))
    return texts


def _item(
    id: int, split: str, texts: Iterable[object], root: Path, names: list[str], where: str
) -> Item:
    captions = tuple(one_line(text) if isinstance(text, str) else "" for text in texts)
    if not captions:
        raise InputError(f"{where} (image {id}) has no caption.")
    if not all(captions):
        raise InputError(f"{where} (image {id}) has an empty caption, or one that is no text.")
    found = find_image(root, names, f"{where} (image {id})")
    return Item(
        id=f"{split}/{id}",
        split=split,
        captions={"en": captions},
        read=partial(read_file, found.path),
        where=f"{where} ({found.path.name})",
        size=found.size,
        stamp=found.stamp,
        extra={"image_id": id},
    )
