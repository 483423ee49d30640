"""Reading `.zst` files, by the package zstandard, which is an extra."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tools.build_shards.errors import InputError

CHUNK = 2**18


def read_zstd(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The content of a file of one or more frames, decompressed."""
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            f"{path} needs the package zstandard: pip install 'mhmoe-mm[text]'."
        ) from error
    frame = None
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                advance(len(chunk))
                while chunk:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    if content := frame.decompress(chunk):
                        yield content
                    chunk = b""
                    if frame.eof:
                        chunk, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise InputError(f"{path} is damaged ({error}).") from error
    if frame is not None:
        raise InputError(f"{path} is cut short.")
