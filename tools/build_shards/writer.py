"""Writing one shard so that it is never half there.

The order: the tar under a temporary name, to the disk; its index; its record; and last the rename
that gives the tar its name. Whatever stops the program in between, a tar with its own name has an
index and a record that agree with it, and anything else is rebuilt by the next run.
"""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from datamodules.index import index_path, scan_shard, write_index
from mhmoe_mm.storage.whole import part_of, publish, write_bytes
from tools.build_shards.errors import InputError, Problem, Problems, refusal
from tools.build_shards.plan import PlannedShard
from tools.build_shards.source import UNKNOWN_LANGUAGE, Item

Prepare = Callable[[bytes, str], tuple[str, bytes]]
"""Image bytes and the item's name -> extension and the bytes to store."""


@dataclass(frozen=True)
class ShardRecord:
    """What was written into one shard; without samples there is no tar."""

    split: str
    shard: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    captions: dict[str, int] = field(default_factory=dict)
    questions: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)


def write_shard(
    shard: PlannedShard,
    folder: Path,
    record_path: Path,
    prepare: Prepare,
    problems: Problems,
    on_sample: Callable[[], None],
) -> ShardRecord:
    """Write `folder/00000.tar`, its index and its record; InputError at a refused sample."""
    final = folder / shard.name
    temporary = part_of(final)
    captions: Counter[str] = Counter()
    skipped: list[Problem] = []
    questions = samples = 0
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for key, item in zip(shard.keys(), shard.items, strict=True):
                    on_sample()
                    try:
                        images = _images(item, prepare)
                    except InputError as error:
                        skipped.append(Problem(item.id, str(error)))
                        if not problems.skip:
                            raise InputError(refusal(skipped)) from error
                        continue
                    for suffix, content in _members(item, images):
                        tar.addfile(*_entry(f"{key}.{suffix}", content))
                    samples += 1
                    questions += len(item.qa)
                    captions.update({code: len(texts) for code, texts in item.captions.items()})
            file.flush()
            os.fsync(file.fileno())
        record = ShardRecord(
            split=shard.split,
            shard=shard.name,
            samples=samples,
            captions=dict(captions),
            questions=questions,
            skipped=[asdict(problem) for problem in skipped],
        )
        if not samples:
            temporary.unlink()
            write_record(record, record_path)
            return record
        index = replace(scan_shard(temporary), shard=shard.name)
        write_index(index, index_path(final))
        record = replace(record, bytes=index.bytes, sha256=index.sha256)
        write_record(record, record_path)
        publish(temporary, final)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(final)  # a failing write does not say where
        raise
    return record


def write_record(record: ShardRecord, path: Path) -> None:
    write_bytes(path, json.dumps(asdict(record), ensure_ascii=False).encode())


def read_record(path: Path) -> ShardRecord:
    return ShardRecord(**json.loads(path.read_bytes()))


def _images(item: Item, prepare: Prepare) -> list[tuple[str, bytes]]:
    """The image, or both images of a pair, by extension."""
    extension, image = prepare(item.read(), item.where)
    if item.right is None:
        return [(extension, image)]
    right_extension, right = prepare(item.right(), item.where)
    return [(f"left.{extension}", image), (f"right.{right_extension}", right)]


def _members(item: Item, images: list[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """The images, the captions in the first language one per line, and everything else as JSON."""
    yield from images
    for first in list(item.captions.values())[:1]:
        yield "txt", ("\n".join(first) + "\n").encode()
    if item.label is not None:
        yield "cls", str(item.label).encode()
    about: dict[str, object] = {"id": item.id}
    if not set(item.captions) <= {UNKNOWN_LANGUAGE}:
        about["captions"] = {code: list(texts) for code, texts in item.captions.items()}
    if item.qa:
        about["qa"] = [dict(pair) for pair in item.qa]
    about.update(item.extra)
    yield "json", (json.dumps(about, ensure_ascii=False) + "\n").encode()


def _entry(name: str, content: bytes) -> tuple[tarfile.TarInfo, io.BytesIO]:
    """A tar entry that says nothing about when and by whom it was made."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    return info, io.BytesIO(content)
