"""Writing a token file (see `datamodules.token_files`) document by document.

The ids go to the disk as they come, so that a corpus may be larger than memory. A safetensors file
says at its beginning how long its tensors are, which is known at the end: the parts lie in nameless
files until then.
"""

import json
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from datamodules.token_files import FORMAT, KINDS
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.storage.whole import file_sha256, whole_file
from tools.build_shards.errors import InputError


@dataclass(frozen=True)
class TokenRecord:
    """What was written into one token file."""

    documents: int
    tokens: int
    """Each document's `</s>` included."""
    text_bytes: int
    """UTF-8 bytes of the texts."""
    unknown: int
    """How many tokens are `<unk>`: what the tokenizer could not spell."""
    bytes: int
    sha256: str


class TokenWriter:
    """A token file in the making; a context manager that leaves nothing behind unless `finish` was
    called.

    Args:
        path: of the file.
        language: its code.
        tokenizer: that makes the ids.
    """

    def __init__(self, path: Path, language: str, tokenizer: Tokenizer):
        self.path = path
        self.language = language
        self.tokenizer = tokenizer
        self.documents = self.tokens = self.text_bytes = self.unknown = 0
        self._token_bytes = np.array(tokenizer.token_bytes, dtype=np.int64)
        kind = "U16" if tokenizer.vocab_size <= 2**16 else "I32"
        self._kinds = {
            "document_end": "I64", "unspelled": "I32", "token_bytes": "I32", "token": kind
        }  # fmt: skip
        self._parts = {name: _nameless(path.parent) for name in self._kinds}
        self._write("token_bytes", self._token_bytes)

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for part in self._parts.values():
            part.close()

    def add(self, texts: list[str]) -> None:
        """Append documents."""
        unspelled = np.zeros(len(texts), dtype=np.int64)
        ends = np.zeros(len(texts), dtype=np.int64)
        for number, ids in enumerate(self.tokenizer.encode_documents(texts)):
            token = np.array([*ids, self.tokenizer.eos], dtype=np.int64)
            length = len(texts[number].encode())
            unspelled[number] = length - self._token_bytes[token].sum()
            self._write("token", token)
            self.documents += 1
            self.tokens += len(token)
            self.text_bytes += length
            self.unknown += int((token == self.tokenizer.unk).sum())
            ends[number] = self.tokens
        self._write("unspelled", unspelled)
        self._write("document_end", ends)

    def finish(self) -> TokenRecord:
        """Give the file its name; InputError where there is no document."""
        if not self.documents:
            raise InputError(f"there is no document for {self.path}.")
        with whole_file(self.path) as file:
            file.write(self._header())
            for part in self._parts.values():
                part.seek(0)
                shutil.copyfileobj(part, file, 2**20)
        return TokenRecord(
            self.documents,
            self.tokens,
            self.text_bytes,
            self.unknown,
            self.path.stat().st_size,
            file_sha256(self.path),
        )

    def _write(self, name: str, values: np.ndarray) -> None:
        self._parts[name].write(values.astype(KINDS[self._kinds[name]]).tobytes())

    def _header(self) -> bytes:
        """The length of the header and the header, which ends at a multiple of 8 bytes."""
        metadata = {
            "format": FORMAT,
            "language": self.language,
            "tokenizer": self.tokenizer.sha256,
            "end": str(self.tokenizer.eos),
        }
        header: dict[str, object] = {"__metadata__": metadata}
        begin = 0
        for name, kind in self._kinds.items():
            end = begin + self._parts[name].tell()
            length = (end - begin) // np.dtype(KINDS[kind]).itemsize
            header[name] = {"dtype": kind, "shape": [length], "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header, separators=(",", ":")).encode()
        padded = text.ljust(-(-len(text) // 8) * 8)
        return struct.pack("<Q", len(padded)) + padded


def _nameless(folder: Path) -> IO[bytes]:
    """A file that is gone when it is closed, or when the program is killed."""
    return tempfile.TemporaryFile(dir=folder)
