"""The plan of a build: which item goes into which shard, decided before anything is written.

It is a function of the source and the options alone. Its digest tells whether a folder that is
already there belongs to the same build, so that finished shards can be kept.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from tools.build_shards.errors import InputError
from tools.build_shards.source import SPLITS, Item, Source

BUILDER = 1
"""Raised whenever the same source and options would give other bytes than before."""
DEFAULT_VAL_SHARE = 0.05
BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(k|m|g)i?b", re.IGNORECASE)
TAR_BYTES_PER_SAMPLE = 6 * 512


@dataclass(frozen=True)
class ShardSize:
    """Where a shard is cut: after so many samples, or before so many bytes."""

    samples: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class PlannedShard:
    """The items of one shard; `first` is the number of its first sample in the whole data set."""

    split: str
    number: int
    first: int
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        return f"{self.number:05d}.tar"

    @property
    def label(self) -> str:
        return f"{self.split}/{self.name}"

    def keys(self) -> list[str]:
        return [f"{self.first + i:09d}" for i in range(len(self.items))]


@dataclass(frozen=True)
class Plan:
    source: str
    inputs: Mapping[str, str | int]
    options: Mapping[str, str | int | float | None]
    shards: tuple[PlannedShard, ...]
    digest: str
    lists: Mapping[str, tuple[str, ...]]


def parse_shard_size(text: str) -> ShardSize:
    """`1000` (samples) or `64MB`, `1.5GB` (bytes of the source's images)."""
    if text.isdigit() and int(text) > 0:
        return ShardSize(samples=int(text))
    if match := BYTES.fullmatch(text.strip()):
        size = float(match[1]) * {"k": 2**10, "m": 2**20, "g": 2**30}[match[2].lower()]
        if size >= 1:
            return ShardSize(bytes=int(size))
    raise InputError(
        f"--shard-size {text}: give a number of samples such as 1000, or bytes such as 64MB."
    )


def make_plan(
    source: Source,
    shard_size: str,
    seed: int,
    shares: Mapping[str, float | None],
    image_size: int | None,
) -> Plan:
    """Split, order and cut the items of a source; `shares` are those of `val` and `test`."""
    if not source.items:
        raise InputError(f"{source.name}: there is no sample to build.")
    cut = parse_shard_size(shard_size)
    resolved = _resolved_shares(source.items, shares)
    by_split: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in source.items:
        split = _split_of(item, resolved)
        by_split[split].append(replace(item, split=split))
    shards: list[PlannedShard] = []
    first = 0
    for split, items in by_split.items():
        items.sort(key=lambda item: _position(item.id, f"order {seed}"))
        for number, members in enumerate(_cut(items, cut)):
            shards.append(PlannedShard(split, number, first, members))
            first += len(members)
    options = {
        "shard_size": shard_size,
        "seed": seed,
        "val_share": resolved["val"],
        "test_share": resolved["test"],
        "image_size": image_size,
    }
    digest = _digest(source, options, shards)
    return Plan(source.name, source.inputs, options, tuple(shards), digest, source.lists)


def _resolved_shares(
    items: Iterable[Item], shares: Mapping[str, float | None]
) -> Mapping[str, float]:
    """Only splits that the source does not have are taken out of its other samples."""
    given = {item.split for item in items if item.split is not None}
    for split, share in shares.items():
        if share and split in given:
            raise InputError(
                f"--{split}-share {share}: the source has a {split} split of its own; leave it out."
            )
        if share is not None and not 0 <= share < 1:
            raise InputError(f"--{split}-share {share} is not a share from 0 to 1.")
    defaults = {"val": 0.0 if given else DEFAULT_VAL_SHARE, "test": 0.0}
    resolved = {
        split: default if shares[split] is None else float(shares[split] or 0)
        for split, default in defaults.items()
    }
    if sum(resolved.values()) >= 1:
        raise InputError(f"--val-share and --test-share add up to {sum(resolved.values()):g}.")
    return resolved


def _split_of(item: Item, shares: Mapping[str, float]) -> str:
    if item.split in ("val", "test"):
        return item.split
    position = _position(item.id, "split")
    if position < shares["test"]:
        return "test"
    return "val" if position < shares["test"] + shares["val"] else "train"


def _position(id: str, salt: str) -> float:
    """A number in [0, 1) that depends on nothing but the id and the salt."""
    digest = hashlib.sha256(f"{salt}\0{id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _cut(items: list[Item], size: ShardSize) -> Iterator[tuple[Item, ...]]:
    current: list[Item] = []
    num_bytes = 0
    for item in items:
        weight = item.size + TAR_BYTES_PER_SAMPLE
        full = len(current) == size.samples or (
            size.bytes is not None and num_bytes + weight > size.bytes
        )
        if current and full:
            yield tuple(current)
            current, num_bytes = [], 0
        current.append(item)
        num_bytes += weight
    if current:
        yield tuple(current)


def _digest(source: Source, options: Mapping[str, object], shards: Iterable[PlannedShard]) -> str:
    head = [BUILDER, source.name, dict(source.inputs), dict(options)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for shard in shards:
        for key, item in zip(shard.keys(), shard.items, strict=True):
            digest.update(f"\n{shard.label}\0{key}\0{item.id}\0{item.stamp}".encode())
    return digest.hexdigest()
