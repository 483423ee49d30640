"""Files and folders that are there whole or not at all, also after a kill or a power cut.

What is written lies beside its place under a name of its own until it is complete and on the disk,
and is then renamed. What a writer that was killed leaves is known by that name's end. Several
programs may write the same file at once: the last one's is there, whole.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PART = ".part"
"""Ends the name of what is not complete."""
OLD = ".old"
"""Ends the name of a folder that is being replaced."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name at the end; where the block fails, nothing is left."""
    with _becoming(path) as part, part.open("w+b") as file:
        yield file


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Put a file in its place that `write` makes, under another name; the folder is made too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _becoming(path) as part:
        write(part)


@contextmanager
def _becoming(path: Path) -> Iterator[Path]:
    part = part_of(path.with_name(f"{path.name}.{secrets.token_hex(4)}"))
    try:
        yield part
        sync(part)
        publish(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """A text in UTF-8; the folder is made too."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Bytes; the folder is there."""
    with whole_file(path) as file:
        file.write(content)


def publish(part: Path, path: Path) -> None:
    """Rename a file that is on the disk already, and push the new name to the disk as well."""
    os.replace(part, path)
    sync(path.parent)


def new_folder(path: Path) -> Path:
    """An empty folder to fill, for `publish_folder` to give the name `path`."""
    part = part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def publish_folder(path: Path) -> None:
    """Give a filled `new_folder` its name; its files are on the disk already.

    A folder of that name is replaced: at any moment the old one or the new one is there whole, if
    not under this name, then under one that `recover` knows.
    """
    part, old = part_of(path), path.with_name(path.name + OLD)
    sync(part)
    if path.is_dir():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(path, old)
    os.replace(part, path)
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> list[str]:
    """Put right what writers left that were killed: what they did not complete is removed, and what
    they had moved aside comes back. A line for each. Several ranks may do so at once.
    """
    lines = []
    for left in sorted(folder.glob(f"*{OLD}")):
        path = left.with_name(left.name.removesuffix(OLD))
        if path.exists():
            shutil.rmtree(left, ignore_errors=True)
            continue
        with suppress(FileNotFoundError):
            os.replace(left, path)
            lines.append(f"{path} is back: the checkpoint that was to replace it was not completed")
    for left in sorted(folder.glob(f"*{PART}")):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
        lines.append(f"removed {left}, which was not completed")
    return lines


def point(link: Path, target: Path) -> None:
    """Make a symbolic link to something in the same folder, or let it point there from now on."""
    part = part_of(link)
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(target, link.parent))
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    os.replace(part, link)
    sync(link.parent)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One process at a time goes through the block; the others wait. `lock` is a file to hold,
    which stays (the folder is made too); the system lets go of it when its holder is gone.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check_space(folder: Path, needed: int) -> None:
    """Refuse to write `needed` bytes where there is no room.

    Raises:
        OSError: there is not enough, with both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.2f} GB free, and what is to be written there takes about "
            f"{needed / 1e9:.2f} GB: make room, or keep fewer checkpoints."
        )


def sync(path: Path) -> None:
    """Push a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(path: Path) -> str:
    """Of what a file holds, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_of(path: Path) -> Path:
    """The name of what is to become `path`."""
    return path.with_name(path.name + PART)
