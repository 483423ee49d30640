"""Caption files: TSV with a header, or one JSON object per line.

TSV: an `image` column, an optional `split` column, and either one `caption` column or one column
per language code. There is no quoting: a caption is what stands between two tabs.
JSONL: `{"image": "a.png", "caption": "..." or ["...", "..."]}`, or `"captions": {"en": "..." or
["...", "..."], "de": ...}`, and an optional `"split"`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from tools.build_shards.errors import InputError, Problems
from tools.build_shards.source import SPLITS, UNKNOWN_LANGUAGE, one_line

LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Row:
    """What a caption file says about one image."""

    image: str
    split: str | None
    captions: dict[str, tuple[str, ...]]
    where: str


def read_rows(data: bytes, name: str, problems: Problems) -> list[Row]:
    """The rows of a caption file, by its suffix .tsv or .jsonl; faulty ones go to `problems`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line} is not UTF-8.") from error
    # Only these end a line: str.splitlines would also cut captions at rarer separators.
    lines = re.split(r"\r\n|\n", text)
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{name} is empty.")
    if name.endswith(".tsv"):
        rows = _tsv_rows(lines, name, problems)
    elif name.endswith(".jsonl"):
        rows = _jsonl_rows(lines, name, problems)
    else:
        raise InputError(f"{name} is neither .tsv nor .jsonl.")
    return list(_faultless(rows, problems))


def is_safe(path: str) -> bool:
    """Whether a relative path stays below the folder it is joined to."""
    parts = PurePosixPath(path).parts
    backslash_or_drive = "\\" in path or re.match(r"[A-Za-z]:", path)
    return bool(parts) and not path.startswith("/") and ".." not in parts and not backslash_or_drive


def _faultless(rows: Iterator[Row], problems: Problems) -> Iterator[Row]:
    first: dict[str, str] = {}
    for row in rows:
        if fault := _fault(row, first):
            problems.add(row.image, f"{row.where} {fault}.")
        else:
            first[row.image] = row.where
            yield row


def _fault(row: Row, first: dict[str, str]) -> str | None:
    if not row.image:
        return "names no image"
    if not is_safe(row.image):
        return f"has the unsafe image path {row.image}"
    if row.image in first:
        return (
            f"lists the image {row.image} again, after {first[row.image]}"
            " (several captions of one image go into one JSONL list)"
        )
    if row.split is not None and row.split not in SPLITS:
        return f"has the split '{row.split}' for {row.image}; a split is train, val or test"
    if not row.captions:
        return f"has no caption for {row.image}"
    for language, captions in row.captions.items():
        if not captions or not all(captions):
            of = "" if language == UNKNOWN_LANGUAGE else f" ({language})"
            return f"has an empty caption{of} for {row.image}"
    return None


def _tsv_rows(lines: list[str], name: str, problems: Problems) -> Iterator[Row]:
    header = [column.strip() for column in lines[0].split("\t")]
    languages = _languages(header, name)
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        where = f"{name} line {number}"
        if len(cells) != len(header):
            problems.add(where, f"{where} has {len(cells)} columns instead of {len(header)}.")
            continue
        row = dict(zip(header, (one_line(cell) for cell in cells), strict=True))
        captions = {code: (row[column],) for column, code in languages.items()}
        yield Row(row["image"], row.get("split"), captions, where)


def _languages(header: list[str], name: str) -> dict[str, str]:
    """Caption column -> language code."""
    columns = [column for column in header if column not in ("image", "split")]
    if "image" not in header or not columns:
        raise InputError(
            f"{name} line 1 must be a header with the columns image and caption"
            f" (or image and language codes), not: {' '.join(header)[:200]}."
        )
    if len(set(header)) < len(header):
        raise InputError(f"{name} line 1 names a column twice: {' '.join(header)[:200]}.")
    if columns == ["caption"]:
        return {"caption": UNKNOWN_LANGUAGE}
    for column in columns:
        if not LANGUAGE.fullmatch(column):
            raise InputError(
                f"{name} line 1 has the column '{column}', which is not image, split, a language"
                " code such as en, or a single caption column."
            )
    return {column: column for column in columns}


def _jsonl_rows(lines: list[str], name: str, problems: Problems) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        where = f"{name} line {number}"
        try:
            yield _jsonl_row(line, where)
        except InputError as error:
            problems.add(where, str(error))


def _jsonl_row(line: str, where: str) -> Row:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}).") from error
    if not isinstance(record, dict) or not isinstance(record.get("image"), str):
        raise InputError(f'{where} must be an object with an "image" name.')
    if ("caption" in record) == ("captions" in record):
        raise InputError(f'{where} must have either "caption" or "captions".')
    given = record.get("captions", {UNKNOWN_LANGUAGE: record.get("caption")})
    if not isinstance(given, dict):
        raise InputError(f'{where}: "captions" must map language codes to captions.')
    captions = {}
    for language, value in given.items():
        if language != UNKNOWN_LANGUAGE and not LANGUAGE.fullmatch(language):
            raise InputError(f"{where}: '{language}' is not a language code such as en.")
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where}: a caption is a text or a list of texts.")
        captions[language] = tuple(one_line(text) for text in texts)
    split = record.get("split")
    return Row(record["image"], None if split is None else str(split), captions, where)
