"""Samples by number, read from shards through their indexes.

`Samples` is a table over many shards that reads single members (`local_shard.py`). A `Sample`
decodes its members by an allowlist; whatever else lies in a shard is never opened.
"""

import hashlib
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from datamodules.decoders import DECODERS, IMAGES, Limits
from datamodules.download import fetch, index_url, read_remote
from datamodules.errors import SampleError
from datamodules.index import ShardError, ShardIndex, index_path, parse_index, read_index
from datamodules.local_shard import LocalShard
from datamodules.recent import Recent
from datamodules.sources import local_path
from mhmoe_mm.inputs.images import Header, ImageError, checked_header, decode_rest

Result = TypeVar("Result")
MAX_INDEX_BYTES = 1 << 30
OPEN_SHARDS = 64
MAKE_INDEX = (
    "make one with `python -m tools.build_shards index {folder}`, or set `streaming` to read "
    "without (see docs/data.md)"
)


class Sample:
    """One sample of a shard: its members are read and decoded when they are asked for.

    Args:
        shard: path or URL, for errors.
        key: the sample's key in the shard.
        sizes: bytes of each member by extension.
        fetch: reads one member: extension -> uint8 array.
        limits: byte and pixel caps.
    """

    __slots__ = ("fetch", "key", "limits", "shard", "sizes")

    def __init__(
        self,
        shard: str,
        key: str,
        sizes: Mapping[str, int],
        fetch: Callable[[str], np.ndarray],
        limits: Limits,
    ):
        self.shard = shard
        self.key = key
        self.sizes = sizes
        self.fetch = fetch
        self.limits = limits

    @property
    def name(self) -> str:
        """`shard/key`, as batches carry it."""
        return f"{self.shard.rsplit('/', 1)[-1]}/{self.key}"

    def image(self, side: str = "") -> Tensor:
        """The image, or the `left` or `right` one of a pair, uint8 (3 height width)."""
        return self.encoded(side).pixels()

    def encoded(self, side: str = "") -> "EncodedImage":
        """The same, of which only the header is decoded."""
        for kind in IMAGES:
            extension = f"{side}.{kind}" if side else kind
            if extension in self.sizes:
                return EncodedImage(self, extension)
        which = f"{side} image" if side else "image"
        raise self.error("missing", f"has no {which}, only {self.members()}")

    def about(self) -> dict[str, Any]:
        """What `.json` says, an object; empty where there is none."""
        if "json" not in self.sizes:
            return {}
        table = self.decode("json")
        if not isinstance(table, dict):
            raise self.error("decode", "cannot be used: it is not an object", "json")
        return table

    def decode(self, extension: str) -> Any:
        """A member as what its extension says it is; `SampleError` names shard, key and cause."""
        if extension not in DECODERS:
            allowed = ", ".join(DECODERS)
            raise self.error("refused", f"is never decoded; only {allowed} are", extension)
        data = self.content(extension)
        return self.attempt(extension, lambda: DECODERS[extension](data, self.limits))

    def content(self, extension: str) -> np.ndarray:
        """The bytes of a member, uint8; one above the cap is not read."""
        if extension not in self.sizes:
            raise self.error("missing", f"has no member .{extension}, only {self.members()}")
        if self.sizes[extension] > self.limits.member_bytes:
            raise self.error(
                "bytes",
                f"cannot be used: it has {self.sizes[extension]} bytes, limits.member_bytes "
                f"allows {self.limits.member_bytes}",
                extension,
            )
        return self.attempt(extension, lambda: self.fetch(extension))

    def attempt(self, extension: str, work: Callable[[], Result]) -> Result:
        """What work on a member gives; `SampleError` names shard, key and cause where it fails."""
        try:
            return work()
        except (SampleError, ImageError) as error:
            raise self.error(error.kind, f"cannot be used: {error}", extension) from error
        except ShardError as error:
            raise self.error("shard", f"cannot be read: {error}", extension) from error

    def members(self) -> str:
        """The members that are there, for errors."""
        return ", ".join(f".{extension}" for extension in self.sizes) or "nothing"

    def error(self, kind: str, what: str, extension: str = "") -> SampleError:
        """A `SampleError` about this sample: shard and key, then `what`."""
        member = f"{self.key}.{extension}" if extension else self.key
        return SampleError(kind, f"Shard {self.shard}: {member} {what}.")


class EncodedImage:
    """An image of a sample, of which only the header is decoded.

    Args:
        sample: whose it is.
        extension: of the member.
    """

    __slots__ = ("_data", "_extension", "_sample", "header")

    def __init__(self, sample: Sample, extension: str):
        self._sample = sample
        self._extension = extension
        data = self._data = sample.content(extension)
        self.header: Header = sample.attempt(
            extension, lambda: checked_header(data, sample.limits.pixels)
        )

    def pixels(self, reduction: int = 1) -> Tensor:
        """uint8 (3 height width); `reduction` as in `decode_rest`."""
        return self._sample.attempt(
            self._extension, lambda: decode_rest(self._data, self.header, reduction)
        )


class Samples:
    """All samples of some shards by number; indexes and files are opened as needed.

    Raises `ShardError` at once when an index is missing or does not fit its shard.
    """

    def __init__(self, shards: list[str], limits: Limits, cache: Path):
        self.shards = shards
        self.limits = limits
        self.cache = cache
        self._indexes: Recent[ShardIndex] = Recent(OPEN_SHARDS)
        self._files: Recent[LocalShard] = Recent(OPEN_SHARDS)
        self.counts = [len(self._index(shard).samples) for shard in range(len(shards))]
        self._ends = list(accumulate(self.counts))
        for shard, location in enumerate(shards):
            if limits.verify or local_path(location):
                self._check(shard)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: int) -> Sample:
        shard = bisect_right(self._ends, number)
        entry = self._index(shard).samples[number - self._ends[shard]]  # counted from the end
        members = entry.members

        def fetch_member(extension: str) -> np.ndarray:
            data = self._file(shard).read(*members[extension])
            if extension in entry.crc and zlib.crc32(data.data) != entry.crc[extension]:
                raise ShardError(
                    "its bytes are not those that were indexed (crc32): restore the shard, or "
                    "index it again if the new content is wanted"
                )
            return data

        sizes = {extension: length for extension, (_, length) in members.items()}
        return Sample(self.shards[shard], entry.key, sizes, fetch_member, self.limits)

    def _index(self, shard: int) -> ShardIndex:
        return self._indexes.get(shard, lambda: load_index(self.shards[shard]))

    def _file(self, shard: int) -> LocalShard:
        return self._files.get(shard, lambda: self._open(shard))

    def _open(self, shard: int) -> LocalShard:
        location, index = self.shards[shard], self._index(shard)
        path = local_path(location) or fetch(location, index.sha256, index.bytes, self.cache)
        return LocalShard(path, index)

    def _check(self, shard: int) -> None:
        file, index = self._open(shard), self._index(shard)
        if not self.limits.verify:
            return
        with file.path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != index.sha256:
            raise ShardError(
                f"Shard {file.path} has the sha256 {found[:12]}..., its index says "
                f"{index.sha256[:12]}...: its content has changed. Restore it or index it again."
            )


def load_index(shard: str) -> ShardIndex:
    """The index of a local or remote shard; `ShardError` says how to make it when it is missing."""
    path = local_path(shard)
    if path is None:
        url = index_url(shard)
        try:
            return parse_index(read_remote(url, MAX_INDEX_BYTES), url)
        except ShardError as error:
            make = MAKE_INDEX.format(folder="PATH")
            raise ShardError(f"Shard {shard} has no usable index ({error}): {make}.") from error
    if not index_path(path).is_file():
        make = MAKE_INDEX.format(folder=path.parent)
        raise ShardError(f"Shard {path} has no index {index_path(path).name}: {make}.")
    return read_index(index_path(path))
