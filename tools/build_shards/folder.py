"""A folder of images with a captions file."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mhmoe_mm.storage.whole import file_sha256
from tools.build_shards.captions import Row, read_rows
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.files import read_file
from tools.build_shards.images import SUFFIXES
from tools.build_shards.source import Item, Source


@contextmanager
def open_folder(images: Path, captions: Path, problems: Problems) -> Iterator[Source]:
    """Every image below `images`, joined with its row of the captions file."""
    if not images.is_dir():
        raise InputError(f"{images} does not exist or is not a folder.")
    if not captions.is_file():
        raise InputError(f"the captions file {captions} does not exist.")
    rows = read_rows(captions.read_bytes(), captions.name, problems)
    items = [item for row in rows if (item := _item(images, row, problems))]
    listed = {row.image for row in rows} | {problem.id for problem in problems.found}
    for path in sorted(images.rglob("*")):
        name = path.relative_to(images).as_posix()
        if path.suffix.lower() in SUFFIXES and path.is_file() and name not in listed:
            problems.add(name, f"the image {name} in {images} has no caption in {captions.name}.")
    yield Source("folder", tuple(items), {captions.name: file_sha256(captions)})


def _item(images: Path, row: Row, problems: Problems) -> Item | None:
    path = images / row.image
    if not path.is_file():
        problems.add(
            row.image, f"{row.where} names the image {row.image}, which is not in {images}."
        )
        return None
    status = path.stat()
    return Item(
        id=row.image,
        split=row.split,
        captions=row.captions,
        read=partial(read_file, path),
        where=f"{row.where} ({row.image})",
        size=status.st_size,
        stamp=f"{status.st_size}-{status.st_mtime_ns}",
    )
