"""Remote shards: opened as streams, or fetched once into a cache on disk.

A cached file is named by the sha256 of its URL, never by its file name: `train/00000.tar` and
`val/00000.tar` of one server must not be taken for each other.
"""

import contextlib
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit, urlunsplit

from datamodules.members import ShardError
from datamodules.sources import local_path, scheme
from mhmoe_mm.storage.whole import alone

TIMEOUT_S = 60
CHUNK = 1 << 20


def index_url(url: str) -> str:
    """The URL of a shard's index: `.index.json` for `.tar`, with the query kept."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.removesuffix(".tar") + ".index.json"))


@contextlib.contextmanager
def open_stream(shard: str) -> Iterator[BinaryIO]:
    """A local or remote file as a stream of bytes; `ShardError` names it when reading fails."""
    try:
        with contextlib.ExitStack() as stack:
            if path := local_path(shard):
                stream = stack.enter_context(path.open("rb"))
            elif scheme(shard) in ("http", "https"):
                stream = stack.enter_context(urllib.request.urlopen(shard, timeout=TIMEOUT_S))
            else:
                stream = stack.enter_context(_fsspec_open(shard))
            yield cast(BinaryIO, stream)
    except (OSError, http.client.HTTPException) as error:
        raise ShardError(f"Shard {shard} cannot be read: {error}.") from error


def read_remote(url: str, most: int) -> bytes:
    """A small remote file, whole; refused when it is larger than `most` bytes."""
    with open_stream(url) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ShardError(f"{url} has more than {most} bytes, which is more than expected.")
    return content


def fetch(url: str, sha256: str, size: int, cache: Path) -> Path:
    """The local copy of a remote shard, fetched if need be and checked against its index.

    Appears under its name only when it is whole; ranks and workers that want the same shard wait
    for each other.
    """
    name = hashlib.sha256(url.encode()).hexdigest()
    # The content is part of the name too: a shard that was replaced on the server is fetched again.
    target = cache / f"{name}-{sha256[:16]}.tar"
    if target.exists():
        return target
    with alone(cache / f"{name}.lock"):
        if not target.exists():
            _download(url, sha256, size, target)
    return target


def _download(url: str, sha256: str, size: int, target: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    digest, received = hashlib.sha256(), 0
    try:
        with os.fdopen(handle, "wb") as file, open_stream(url) as stream:
            while received <= size and (chunk := stream.read(CHUNK)):
                received += len(chunk)
                digest.update(chunk)
                file.write(chunk)
        if received != size or digest.hexdigest() != sha256:
            raise ShardError(
                f"Shard {url} does not match its index: {received} bytes with sha256 "
                f"{digest.hexdigest()[:12]} instead of {size} bytes with sha256 {sha256[:12]}."
            )
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _fsspec_open(url: str):
    try:
        import fsspec
    except ImportError:
        raise ShardError(f"Reading {url} needs the package fsspec: pip install fsspec.") from None
    try:
        return fsspec.open(url, "rb")
    except (ImportError, ValueError) as error:
        raise ShardError(f"Shard {url} cannot be opened: {error}") from error
