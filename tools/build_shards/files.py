"""Reading what a build is given."""

from pathlib import Path

from tools.build_shards.errors import InputError


def read_file(path: Path) -> bytes:
    """The bytes of a file; InputError where they cannot be had."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
