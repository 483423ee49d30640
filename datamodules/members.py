"""What a tar may hold to be a shard: plain files with safe names of the form `key.extension`."""

import tarfile
from pathlib import PurePosixPath

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class ShardError(ValueError):
    """A shard that cannot be trusted; the sentence names the shard, the sample and the cause."""


def refuse_compressed(shard: str, head: bytes) -> None:
    """Raise `ShardError` when the first bytes are those of a compressed file."""
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            raise ShardError(
                f"Shard {shard} is compressed ({kind}): decompress it first; "
                "images are compressed already, and a plain tar can be read at any place."
            )


def split_name(shard: str, name: str) -> tuple[str, str]:
    """Key and extension, cut at the first dot: `a/b.seg.PNG` -> (`a/b`, `seg.png`)."""
    path = PurePosixPath(name)  # drops a leading "./", keeps ".."
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable()
    if unsafe:
        raise ShardError(
            f"Shard {shard} has a member with the unsafe name {name!r}: "
            "names must be relative, without `..`, backslashes or control characters."
        )
    stem, dot, extension = path.name.partition(".")
    if not (stem and dot and extension):
        raise ShardError(
            f"Shard {shard} has the member {name!r}, which is not of the form `key.extension`: "
            "such a file belongs to no sample."
        )
    return str(path.with_name(stem)), extension.lower()


def refuse_special(shard: str, member: tarfile.TarInfo) -> None:
    """Raise `ShardError` unless a member is a plain file."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise ShardError(
            f"Shard {shard} has the member {member.name!r}, which is a link, a device or a sparse "
            "file: a shard holds plain files only."
        )


def refuse_unsafe_directory(shard: str, name: str) -> None:
    """Raise `ShardError` when the name of a directory entry, which holds no data, is unsafe."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ShardError(f"Shard {shard} has a directory with the unsafe name {name!r}.")
