"""The index of a shard: where each member of each sample lies inside the tar, and the tar's sha256.

An index turns a tar into a table: exact lengths, random access without reading headers again, and
a truncated or replaced shard found before training. It lies beside its shard, `00000.index.json`
beside `00000.tar`. It has the crc32 of every member, so that a changed byte is found when the
member is read, and a digest of its own.

A scan is stricter than `tarfile`, which ends quietly at the first header it cannot read: here the
members must be followed by the zero blocks that end an archive, and by nothing else.
"""

import hashlib
import json
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from datamodules.members import (
    ShardError,
    refuse_compressed,
    refuse_special,
    refuse_unsafe_directory,
    split_name,
)

FORMAT = 1
BLOCK = tarfile.BLOCKSIZE
REBUILD = "make it again with `python -m tools.build_shards index PATH`"


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """One sample: its key, and (offset, length) of the data of each member by extension."""

    key: str
    members: dict[str, tuple[int, int]]
    crc: dict[str, int] = field(default_factory=dict)
    """The crc32 of each member; none in an index of an earlier version."""


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """One shard: its file name, its size and sha256, and its samples in the order of the tar."""

    shard: str
    bytes: int
    sha256: str
    samples: tuple[SampleIndex, ...]


def index_path(tar_path: Path | str) -> Path:
    """Where the index of a shard lies: `00000.index.json` beside `00000.tar`."""
    tar_path = Path(tar_path)
    return tar_path.with_name(f"{tar_path.stem}.index.json")


def scan_shard(tar_path: Path | str) -> ShardIndex:
    """Read a whole tar and index it.

    Raises `ShardError` when it is missing, empty, compressed or truncated (also where `tarfile`
    sees nothing wrong), when a key comes back after another sample, when a name is unsafe or has
    no extension, and on links, devices and sparse files.
    """
    tar_path = Path(tar_path)
    name = tar_path.name
    if not tar_path.is_file():
        raise ShardError(f"Shard {tar_path} does not exist.")
    with tar_path.open("rb") as file:
        refuse_compressed(name, file.read(8))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        file.seek(0)
        samples = tuple(
            replace(sample, crc={ext: _crc(file, *at) for ext, at in sample.members.items()})
            for sample in _group(name, _members(name, file, size))
        )
    if not samples:
        raise ShardError(f"Shard {name} holds no samples.")
    return ShardIndex(shard=name, bytes=size, sha256=digest, samples=samples)


def write_index(index: ShardIndex, path: Path | str) -> None:
    """Write an index as JSON, atomically: the file is there whole or not at all."""
    path = Path(path)
    samples = [
        {"key": sample.key, "members": sample.members} | ({"crc": sample.crc} if sample.crc else {})
        for sample in index.samples
    ]
    content = {
        "format": FORMAT,
        "shard": index.shard,
        "bytes": index.bytes,
        "sha256": index.sha256,
        "samples": samples,
    }
    content["digest"] = _digest(content)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, separators=(",", ":"))
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_index(path: Path | str) -> ShardIndex:
    """Read an index and check it; raises `ShardError` when it is not one."""
    path = Path(path)
    try:
        return parse_index(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise ShardError(f"Index {path} does not exist.") from None


def parse_index(content: bytes, origin: str) -> ShardIndex:
    """An index from its JSON; `origin` names it in errors. Bytes outside the shard are refused."""
    try:
        table = json.loads(content)
        if table["format"] != FORMAT:
            raise ShardError(
                f"Index {origin} has format {table['format']!r}, this version reads format "
                f"{FORMAT}: {REBUILD}."
            )
        if "digest" in table and table["digest"] != _digest(table):
            raise ShardError(f"Index {origin} is damaged: {REBUILD}.")
        samples = tuple(
            SampleIndex(
                str(sample["key"]),
                {str(ext): (int(at), int(size)) for ext, (at, size) in sample["members"].items()},
                {str(ext): int(crc) for ext, crc in sample.get("crc", {}).items()},
            )
            for sample in table["samples"]
        )
        index = ShardIndex(str(table["shard"]), int(table["bytes"]), str(table["sha256"]), samples)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(
            f"Index {origin} cannot be read ({type(error).__name__}: {error}): {REBUILD}."
        ) from error
    _check(index, origin)
    return index


def _digest(table: dict[str, Any]) -> str:
    """Of all that an index says."""
    said = {key: value for key, value in table.items() if key != "digest"}
    text = json.dumps(said, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _crc(file: BinaryIO, offset: int, length: int) -> int:
    """Of a member's bytes; where the file is read is left as it was."""
    crc, done = 0, 0
    while done < length:
        chunk = os.pread(file.fileno(), min(length - done, 1 << 20), offset + done)
        if not chunk:
            break  # the scan has looked at the size already
        crc, done = zlib.crc32(chunk, crc), done + len(chunk)
    return crc


def _members(shard: str, file: BinaryIO, size: int) -> Iterator[tuple[str, str, int, int]]:
    """(key, extension, offset, length) of each plain file; then checks how the archive ends."""
    end = 0
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if end > size:
                    raise ShardError(
                        f"Shard {shard} is truncated: {member.name!r} ends at byte "
                        f"{member.offset_data + member.size}, the file has {size} bytes."
                    )
                last = repr(member.name)
                if member.isdir():
                    refuse_unsafe_directory(shard, member.name)
                    continue
                refuse_special(shard, member)
                yield *split_name(shard, member.name), member.offset_data, member.size
    except tarfile.TarError as error:
        raise ShardError(
            f"Shard {shard} is truncated or damaged after {last} ({error}): "
            f"the file has {size} bytes."
        ) from error
    _check_end(shard, file, end, size, last)


def _check_end(shard: str, file: BinaryIO, end: int, size: int, last: str) -> None:
    """After the last member: two zero blocks, and padding to a whole record or none, all zeros."""
    found = size - end
    if found < 2 * BLOCK:
        raise ShardError(
            f"Shard {shard} is truncated: after {last}, which ends at byte {end}, "
            f"{2 * BLOCK} zero bytes must end the archive, but the file has {size} bytes."
        )
    if found != 2 * BLOCK and size % tarfile.RECORDSIZE:
        raise ShardError(
            f"Shard {shard} is truncated in its padding, or was written with an unusual blocking "
            f"factor: its {size} bytes are not a multiple of {tarfile.RECORDSIZE}. Write it again."
        )
    file.seek(end)
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise ShardError(
                f"Shard {shard} is damaged: after {last}, which ends at byte {end}, "
                "there is neither a readable header nor the end of the archive."
            )


def _group(shard: str, members: Iterator[tuple[str, str, int, int]]) -> tuple[SampleIndex, ...]:
    """Adjacent members of one key as samples; a key that comes back later is refused."""
    samples: dict[str, SampleIndex] = {}
    current = None
    for key, extension, offset, length in members:
        if key != current and key in samples:
            raise ShardError(
                f"Shard {shard} has the key {key!r} twice, with other samples between: "
                "the members of a sample must lie side by side and keys must be unique."
            )
        sample = samples.setdefault(key, SampleIndex(key, {}))
        if extension in sample.members:
            raise ShardError(f"Shard {shard} has the member {key}.{extension} twice.")
        sample.members[extension] = (offset, length)
        current = key
    return tuple(samples.values())


def _check(index: ShardIndex, origin: str) -> None:
    seen: set[str] = set()
    for sample in index.samples:
        if sample.key in seen:
            raise ShardError(f"Index {origin} has the key {sample.key!r} twice.")
        seen.add(sample.key)
        for extension, (offset, length) in sample.members.items():
            if offset < 0 or length < 0 or offset + length > index.bytes:
                raise ShardError(
                    f"Index {origin} places {sample.key}.{extension} at bytes {offset} to "
                    f"{offset + length} of a shard of {index.bytes} bytes."
                )
    if not index.samples:
        raise ShardError(f"Index {origin} lists no samples.")
