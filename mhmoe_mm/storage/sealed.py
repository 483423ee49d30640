"""Checkpoints in one file that carry their own sha256.

A file that `torch.save` wrote is a zip archive. Its comment, which every reader skips, takes the
sha256 of all that is before it: the file stays what it was to others, one rename puts it in its
place, and a changed bit is found wherever it is. A member of the archive says that there is a seal,
so that damage to the comment does not make the file pass as one that never had any.
"""

import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from mhmoe_mm.storage.whole import whole_file

_MEMBER = "sealed"
"""Ends the name of the member that says so."""
_LENGTH = 64
_END = b"PK\x05\x06"
_END_SIZE = 22
_CHUNK = 1 << 24


class Damaged(ValueError):
    """A checkpoint that is not what was written."""


def save_sealed(content: Mapping[str, Any], path: Path) -> None:
    """Write values with `torch.save` to one sealed file, whole or not at all; the folder is there.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    with whole_file(path) as file:
        torch.save(dict(content), file)
        with zipfile.ZipFile(file, "a") as archive:
            top = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{top}/{_MEMBER}", "see the comment of this archive")
        _seal(file)


def read_sealed(path: Path, verify: bool = True, mmap: bool = False) -> dict[str, Any]:
    """The values of a checkpoint, without running code; also of one that was never sealed.

    Raises:
        Damaged: the file is not what was written.
        ValueError: it is no checkpoint, or cannot be read safely.
    """
    if verify:
        if not verify_sealed(path):
            _verify_members(path)
            mmap = False  # a map does not see where a member of the archive ends
    elif _members(path) is None:
        raise Damaged(f"{path} is not a checkpoint, or not a whole one.")
    try:
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=mmap)
    except Exception as error:  # torch and pickle raise many kinds over what they cannot read
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint.")
    return content


def verify_sealed(path: Path) -> bool:
    """Whether the file is sealed, having compared it with its seal; reads all of it.

    Raises:
        Damaged: the file is not what was written, or not a whole archive.
    """
    if not path.is_file():
        raise Damaged(f"{path} is not a file.")
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _LENGTH - _END_SIZE))
        end, wanted = file.read(_END_SIZE), file.read(_LENGTH)
        if end[:4] == _END and end[-2:] == struct.pack("<H", _LENGTH):
            if _digest(file, size - _LENGTH) != wanted:
                raise Damaged(f"{path} is damaged: it is not what was written (sha256).")
            return True
    names = _members(path)
    if names is None:
        raise Damaged(f"{path} is not a checkpoint, or not a whole one.")
    if any(name.endswith(f"/{_MEMBER}") for name in names):
        raise Damaged(f"{path} is damaged: it was sealed, and its seal is gone.")
    return False


def _verify_members(path: Path) -> None:
    """Compare the members of an archive without a seal with the sums that zip keeps of them."""
    with zipfile.ZipFile(path) as archive:
        try:
            damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
            raise Damaged(f"{path} is damaged: {error}.") from error
    if damaged is not None:
        raise Damaged(f"{path} is damaged: {damaged} in it is not what was written (crc32).")


def _members(path: Path) -> list[str] | None:
    """Of an archive; None of what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None


def _seal(file: IO[bytes]) -> None:
    file.flush()
    size = file.seek(0, io.SEEK_END)
    file.seek(size - _END_SIZE)
    end = file.read(_END_SIZE)
    assert end[:4] == _END, "torch.save ends an archive without a comment"
    file.seek(size - 2)
    file.write(struct.pack("<H", _LENGTH))
    digest = _digest(file, size)
    file.seek(size)
    file.write(digest)


def _digest(file: IO[bytes], size: int) -> bytes:
    """The sha256 of the first bytes, in hexadecimal."""
    file.flush()
    file.seek(0)
    digest, left = hashlib.sha256(), size
    while left:
        chunk = file.read(min(left, _CHUNK))
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest().encode()
