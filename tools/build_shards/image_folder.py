"""A folder of classes, as ImageNet's: `train/n01440764/a.JPEG`, `val/n01440764/b.JPEG`, or without
splits `cat/a.jpg`. Classes are numbered in the order of their names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tools.build_shards.annotations import need_folder
from tools.build_shards.errors import Problems
from tools.build_shards.files import read_file
from tools.build_shards.images import SUFFIXES
from tools.build_shards.source import SPLITS, Item, Source

CLASSES = "classes.json"


@contextmanager
def open_image_folder(root: Path, problems: Problems) -> Iterator[Source]:
    """One item per image with the number of its class; `classes.json` lists the names."""
    need_folder(root)
    splits = [split for split in SPLITS if (root / split).is_dir()] or [None]
    folders = {split: _classes(root / split if split else root) for split in splits}
    first = next(iter(folders.values()))
    classes = tuple(sorted(first))
    items = []
    for split, by_class in folders.items():
        for name, folder in sorted(by_class.items()):
            if name not in first:
                problems.add(
                    f"{split}/{name}",
                    f"the class {name} of {split} is not one of the {len(first)} classes of"
                    f" {splits[0]} in {root}.",
                )
                continue
            items += _items(split, name, folder, classes.index(name), problems)
    inputs = {"classes": len(classes)}
    yield Source("image-folder", tuple(items), inputs, {CLASSES: classes})


def _classes(root: Path) -> dict[str, Path]:
    return {path.name: path for path in root.iterdir() if path.is_dir()}


def _items(
    split: str | None, name: str, folder: Path, label: int, problems: Problems
) -> Iterator[Item]:
    images = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not images:
        problems.add(f"{split}/{name}", f"the folder {folder} of the class {name} has no image.")
    for path in images:
        status = path.stat()
        place = path.relative_to(folder).as_posix()
        yield Item(
            id="/".join(part for part in (split, name, place) if part),
            split=split,
            captions={},
            read=partial(read_file, path),
            where=str(path),
            size=status.st_size,
            stamp=f"{status.st_size}-{status.st_mtime_ns}",
            label=label,
            extra={"class": name},
        )
