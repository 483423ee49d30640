"""A tar read from front to back as samples, with the checks that `tarfile` leaves out."""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import BinaryIO, cast

import numpy as np
from webdataset.gopen import gopen

from datamodules.decoders import DECODERS, Limits
from datamodules.download import open_stream
from datamodules.members import (
    ShardError,
    refuse_compressed,
    refuse_special,
    refuse_unsafe_directory,
    split_name,
)
from datamodules.reading import Sample
from datamodules.sources import scheme

END_BYTES = 2 * tarfile.BLOCKSIZE


class Tail:
    """A stream that remembers how many bytes passed and the last of them."""

    def __init__(self, stream: BinaryIO, shard: str):
        self.stream = stream
        self.shard = shard
        self.num_bytes = 0
        self.expected = END_BYTES
        """How many bytes there must be at least, by what was seen so far."""
        self.last = b""

    def read(self, size: int) -> bytes:
        """The next bytes, as of a file."""
        chunk = self.stream.read(size)
        if self.num_bytes == 0:
            refuse_compressed(self.shard, chunk[:8])
        self.num_bytes += len(chunk)
        self.last = (self.last + chunk)[-END_BYTES:]
        return chunk


def read_stream(shard: str, limits: Limits) -> Iterator[Sample]:
    """The samples of a tar from front to back.

    Raises `ShardError` when it turns out to be cut, damaged or compressed, or to hold what no shard
    may hold; its last sample is given only when the archive ends as it should.
    """
    try:
        with _open(shard) as raw:
            yield from _samples(shard, Tail(raw, shard), limits)
    except tarfile.TarError as error:
        raise ShardError(f"Shard {shard} is truncated or damaged: {error}.") from error


def _samples(shard: str, stream: Tail, limits: Limits) -> Iterator[Sample]:
    """Members of one key as samples, then the check that the archive ends as it should."""
    seen: set[str] = set()
    key, sizes, members = "", {}, {}
    for name, extension, size, read in _members(shard, stream):
        if name != key:
            if sizes:
                yield Sample(shard, key, sizes, members.__getitem__, limits)
            if name in seen:
                raise ShardError(f"Shard {shard} has the key {name!r} twice, not side by side.")
            seen.add(name)
            key, sizes, members = name, {}, {}
        sizes[extension] = size
        if extension in DECODERS and size <= limits.member_bytes:
            members[extension] = np.frombuffer(bytearray(read()), dtype=np.uint8)
    while stream.read(1 << 20):
        pass
    if stream.num_bytes < stream.expected or stream.last.strip(b"\0"):
        raise ShardError(
            f"Shard {shard} is truncated or damaged: it has {stream.num_bytes} bytes and does not "
            f"end as an archive does after its last readable member, of {key!r}."
        )
    if not sizes:
        raise ShardError(f"Shard {shard} holds no samples.")
    yield Sample(shard, key, sizes, members.__getitem__, limits)


def _members(shard: str, stream: Tail) -> Iterator[tuple[str, str, int, Callable[[], bytes]]]:
    """(key, extension, size, how to read it) of each plain file."""
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r|") as tar:
        for member in tar:
            if member.isdir():
                refuse_unsafe_directory(shard, member.name)
                continue
            refuse_special(shard, member)
            key, extension = split_name(shard, member.name)
            blocks = -(-member.size // tarfile.BLOCKSIZE)
            stream.expected = member.offset_data + blocks * tarfile.BLOCKSIZE + END_BYTES
            file = tar.extractfile(member)
            assert file is not None
            yield key, extension, member.size, file.read


def _open(shard: str) -> AbstractContextManager[BinaryIO]:
    # A pipe gets here only with streaming.allow_pipe: expand_shards refuses it otherwise.
    if scheme(shard) == "pipe":
        return cast(AbstractContextManager[BinaryIO], gopen(shard))
    return open_stream(shard)
