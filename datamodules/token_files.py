"""Token files: the documents of one language as ids, mapped into memory and read at any place.

A safetensors file, as `python -m tools.build_corpus` writes it:

    token           uint16 or int32 (tokens)      every document's ids, each followed by `</s>`
    document_end    int64 (documents)             the place behind each document's `</s>`
    unspelled       int32 (documents)             UTF-8 bytes of each text less those its ids spell
    token_bytes     int32 (vocab)                 UTF-8 bytes that each id spells
    metadata        format, language, tokenizer (sha256), end (the id of `</s>`)

`unspelled` is 0 where the tokenizer loses nothing. Counted with the `</s>`, it makes the bytes of a
text right with any tokenizer, be it one that puts a blank in front or composes letters.
"""

import json
import struct
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.members import ShardError
from datamodules.sources import nearby

FORMAT = "mhmoe-mm tokens 1"
SUFFIX = ".safetensors"
KINDS = {"U16": "<u2", "I32": "<i4", "I64": "<i8"}
MAX_HEADER = 2**20
AGAIN = "build it again with `python -m tools.build_corpus`"


class TokenFile:
    """One open token file.

    Args:
        path: of the file.

    Raises:
        ShardError: where it is no token file, or not all of it is there.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        about, self._start = _header(self.path)
        metadata = about.pop("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ShardError(
                f"{path} is not a file of tokens in the format {FORMAT!r}, but "
                f"{metadata.get('format', 'of another kind')!r}; {AGAIN}."
            )
        self.language: str = metadata["language"]
        self.tokenizer_sha256: str = metadata["tokenizer"]
        self.end = int(metadata["end"])
        """The id of `</s>`."""
        size = self._start + max(tensor["data_offsets"][1] for tensor in about.values())
        if self.path.stat().st_size != size:
            raise ShardError(
                f"{path} has {self.path.stat().st_size} bytes instead of {size}; {AGAIN}."
            )
        self._token = self._mapped(about["token"])
        self.document_end = self._mapped(about["document_end"])
        self._unspelled = self._mapped(about["unspelled"])
        self._token_bytes = np.array(self._mapped(about["token_bytes"]), dtype=np.int64)
        if not len(self._token) or self.document_end[-1] != len(self._token):
            raise ShardError(f"{path} has no documents, or its last one has no end; {AGAIN}.")

    def __len__(self) -> int:
        return len(self._token)

    def __reduce__(self):
        return TokenFile, (self.path,)  # a worker maps the file for itself

    @property
    def num_documents(self) -> int:
        """How many documents the file holds."""
        return len(self.document_end)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 (stop - start): ids, and the UTF-8 bytes that each stands for."""
        token = self._token[start:stop].astype(np.int64)
        num_bytes = self._token_bytes[token]
        first, last = np.searchsorted(self.document_end, [start, stop], side="right")
        num_bytes[self.document_end[first:last] - 1 - start] += self._unspelled[first:last]
        return token, num_bytes

    def _mapped(self, tensor: dict[str, Any]) -> np.ndarray:
        begin, _ = tensor["data_offsets"]
        kind, shape = KINDS[tensor["dtype"]], tuple(tensor["shape"])
        if not shape[0]:
            return np.zeros(0, kind)
        mapped = np.memmap(self.path, kind, "r", offset=self._start + begin, shape=shape)
        return mapped.view(np.ndarray)  # slices of a memmap are slow to make


def expand_files(files: str | list[str]) -> list[Path]:
    """Token files named by folders, globs and paths, in that order, those of a folder sorted."""
    found: list[Path] = []
    for pattern in [files] if isinstance(files, str) else files:
        path = Path(pattern)
        listed = (
            sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else sorted(map(Path, glob(pattern)))
        )
        if not listed:
            raise ShardError(
                f"No token files match {pattern!r}: {nearby(path)} "
                "`python -m tools.build_corpus` makes them."
            )
        found += map(Path, listed)
    if len(set(found)) < len(found):
        twice = next(path for path in found if found.count(path) > 1)
        raise ShardError(f"{twice} is listed twice: each token must count once an epoch.")
    return found


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """(the safetensors header, where the tensors begin)."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
            if not isinstance(header, dict):
                raise ValueError("a header that is no object")
            return header, 8 + length
    except OSError as error:
        raise ShardError(f"The token file {path} cannot be read ({error.strerror}).") from error
    except (ValueError, struct.error) as error:
        raise ShardError(f"{path} is not a safetensors file ({error}); {AGAIN}.") from error
