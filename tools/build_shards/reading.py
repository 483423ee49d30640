"""Reading built shards back, sample by sample, through their indices."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datamodules.index import ShardError, index_path, read_index
from tools.build_shards.errors import InputError


@dataclass(frozen=True)
class StoredSample:
    """One sample of a shard: extension -> bytes."""

    where: str
    members: dict[str, bytes]


def shards_of(folder: Path, split: str) -> list[Path]:
    """The shards of a split of a data folder, or those of a plain folder of shards."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist or is not a folder.")
    shards = sorted((folder / split).glob("*.tar")) or sorted(folder.glob("*.tar"))
    if not shards:
        raise InputError(f"neither {folder / split} nor {folder} holds a .tar shard.")
    return shards


def read_samples(shard: Path, extensions: frozenset[str]) -> Iterator[StoredSample]:
    """Every sample of a shard in order, with those members whose extension is asked for."""
    index = read_index(index_path(shard))
    size = shard.stat().st_size
    if size != index.bytes:
        raise ShardError(
            f"Shard {shard} has {size} bytes, its index says {index.bytes}: build it again."
        )
    with shard.open("rb") as file:
        for sample in index.samples:
            members = {}
            for extension, (offset, length) in sample.members.items():
                if extension in extensions:
                    file.seek(offset)
                    members[extension] = file.read(length)
            yield StoredSample(f"{shard}, sample {sample.key}", members)
