"""Documents of text files, one after the other, in whatever form they come.

    .txt                 one document a line, or the whole file as one
    .jsonl               one object a line, the text in a field of it
    .parquet             one document a row, the text in a column

The first two may be compressed (`.gz`, `.zst`), and text may also be named by its language
(`train.de.gz`). Nothing is changed in a text, except that the end of its line is taken away.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tools.build_corpus.parquet import read_parquet
from tools.build_corpus.zstd import read_zstd
from tools.build_shards.annotations import parsed_json, value
from tools.build_shards.errors import InputError, Problem, refusal

CHUNK = 2**20
BOM = b"\xef\xbb\xbf"
COMPRESSIONS = (".gz", ".zst")
KEPT = 100
"""Of what is skipped, so many are listed."""


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        field: of a JSON line, or column of a parquet file, that has the text.
        whole_files: a text file is one document, not one a line.
    """

    field: str = "text"
    whole_files: bool = False


class Skipped:
    """What is no document: refused at once, or counted, with the first of them kept.

    Args:
        allowed: whether to go on without.
    """

    def __init__(self, allowed: bool):
        self.allowed = allowed
        self.count = 0
        self.first: list[Problem] = []

    def add(self, where: str, reason: str) -> None:
        """Put one down; InputError where that is not allowed."""
        problem = Problem(where, reason)
        if not self.allowed:
            raise InputError(refusal([problem]))
        self.count += 1
        if self.count <= KEPT:
            self.first.append(problem)


def kind_of(path: Path, language: str) -> str:
    """`text`, `jsonl` or `parquet`; InputError where a file's name does not say."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    if path.suffix == ".parquet":
        return "parquet"
    name = Path(path.stem) if path.suffix in COMPRESSIONS else path
    if name.suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if name.suffix in (".txt", f".{language}"):
        return "text"
    raise InputError(
        f"{path} is none of .txt, .jsonl (both also with .gz or .zst), .parquet or .{language}."
    )


def read_documents(
    path: Path,
    language: str,
    reading: Reading,
    skipped: Skipped,
    advance: Callable[[int], None] = lambda num_bytes: None,
) -> Iterator[str]:
    """The documents of a file; what is none is refused or noted in `skipped`.

    `advance` is told how many bytes of the file were read.
    """
    kind = kind_of(path, language)
    if kind == "parquet":
        found = read_parquet(path, reading.field, advance)
    elif kind == "text" and reading.whole_files:
        found = iter([(str(path), b"".join(_chunks(path, advance)).removeprefix(BOM))])
    else:
        found = _lines(path, advance)
    for where, raw in found:
        try:
            text = _json_text(raw, reading.field, where) if kind == "jsonl" else _text(raw, where)
        except InputError as error:
            skipped.add(where, str(error))
            continue
        if text is not None:
            yield text


def _text(raw: bytes | str | None, where: str) -> str:
    if raw is None:
        raise InputError(f"{where} has no text (null).")
    if isinstance(raw, str):
        text = raw
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} has half of a surrogate pair in its text.") from error
    else:
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 (byte {error.start + 1} of it).") from error
    if not text.strip():
        raise InputError(f"{where} is empty.")
    return text


def _json_text(raw: bytes | str | None, field: str, where: str) -> str | None:
    """The text of a JSON line; None where the line is blank."""
    assert isinstance(raw, bytes)
    if not raw.strip():
        return None
    entry = parsed_json(_text(raw, where), where)
    if not isinstance(entry, dict):
        raise InputError(f"{where} is not an object.")
    return _text(value(entry, field, str, where), where)


def _lines(path: Path, advance: Callable[[int], None]) -> Iterator[tuple[str, bytes]]:
    """(`file line 3`, line without its end) of a file; never more than a line is in memory."""
    number = 0
    begun: list[bytes] = []
    for chunk in chain(_chunks(path, advance), [None]):
        ended: list[bytes] = []
        if chunk is not None:
            *ended, rest = chunk.split(b"\n")
            if ended:
                ended[0] = b"".join([*begun, ended[0]])
                begun.clear()
            begun.append(rest)
        elif any(begun):  # the file does not end with the end of a line
            ended = [b"".join(begun)]
        for line in ended:
            number += 1
            if number == 1:
                line = line.removeprefix(BOM)
            yield f"{path} line {number}", line.removesuffix(b"\r")


def _chunks(path: Path, advance: Callable[[int], None]) -> Iterator[bytes]:
    """The content of a file, decompressed."""
    if path.suffix == ".zst":
        yield from read_zstd(path, advance)
        return
    with path.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        before = 0
        try:
            while chunk := stream.read(CHUNK):
                advance(file.tell() - before)
                before = file.tell()
                yield chunk
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is damaged or cut short ({error}).") from error
