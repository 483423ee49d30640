"""Reading zip files that strangers made: names are checked, sizes bounded, damage is told."""

import json
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.build_shards.captions import is_safe
from tools.build_shards.errors import InputError

MAX_MEMBER_BYTES = 256 * 2**20


class Archive:
    """An open zip file with safe names."""

    def __init__(self, path: Path, file: zipfile.ZipFile):
        self.path = path
        self.file = file
        self.members = {info.filename: info for info in file.infolist() if not info.is_dir()}
        self._refuse_unsafe()

    def _refuse_unsafe(self) -> None:
        seen: set[str] = set()
        for info in self.file.infolist():
            if not is_safe(info.filename.rstrip("/")) or stat.S_ISLNK(info.external_attr >> 16):
                raise InputError(f"{self.path} has a member with an unsafe path: {info.filename}.")
            if info.filename in seen:
                raise InputError(f"{self.path} holds {info.filename} twice.")
            seen.add(info.filename)

    def read(self, name: str) -> bytes:
        """The bytes of a member; the zip's own checksum is verified on the way."""
        if name not in self.members:
            raise InputError(f"{self.path} holds no {name}.")
        info = self.members[name]
        if info.file_size > MAX_MEMBER_BYTES:
            raise InputError(
                f"{name} in {self.path} has {info.file_size:,} bytes;"
                f" at most {MAX_MEMBER_BYTES:,} are read."
            )
        try:
            return self.file.read(info)
        except (
            zipfile.BadZipFile,
            RuntimeError,
            NotImplementedError,
            zlib.error,
            EOFError,
        ) as error:
            raise InputError(f"{name} in {self.path} is damaged ({error}).") from error

    def read_json(self, name: str) -> object:
        try:
            return json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name} in {self.path} is not JSON ({error}).") from error

    def size(self, name: str) -> int:
        return self.members[name].file_size


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The zip file at `path`; raises InputError where it is missing, damaged or unsafe."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        file = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a zip file or is damaged ({error}).") from error
    with file:
        yield Archive(path, file)
