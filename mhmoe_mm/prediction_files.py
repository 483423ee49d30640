"""The files that predictions end in: what the official servers take, and vectors.

A task names one as its `prediction_file`. Rows are dictionaries, in the order of the data set; a
file is a function of its rows, to the byte.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Row = dict[str, Any]


class PredictionFile(ABC):
    """A format of predictions. Abstract.

    Args:
        name: of the file in its folder.
        unique: the field that names a row, which may come once; None where rows may be alike.
    """

    def __init__(self, name: str, unique: str | None):
        self.name, self.unique = name, unique

    def id_of(self, row: Row) -> Any:
        """What `unique` is in the file; None where rows may be alike."""
        return None if self.unique is None else row[self.unique]

    @abstractmethod
    def write(self, rows: Sequence[Row], path: Path) -> None:
        """Write `path`; it need not be whole before this returns."""


class JsonList(PredictionFile):
    """A JSON list with a row a line. Values of `unique` are ints where they look like ints, as in
    the results of VQA v2 and of COCO captions."""

    def id_of(self, row: Row) -> Any:
        value = super().id_of(row)
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            return int(value)
        return value

    def write(self, rows: Sequence[Row], path: Path) -> None:
        ids = [{} if self.unique is None else {self.unique: self.id_of(row)} for row in rows]
        both = zip(rows, ids, strict=True)
        lines = [json.dumps({**row, **own}, ensure_ascii=False) for row, own in both]
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


class CsvWithHeader(PredictionFile):
    """Comma-separated values, the fields of the rows in the first line."""

    def write(self, rows: Sequence[Row], path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(rows[0])
            writer.writerows(row.values() for row in rows)


class PlainCsv(PredictionFile):
    """Comma-separated values alone, as the official program of NLVR2 reads them."""

    def write(self, rows: Sequence[Row], path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(row.values() for row in rows)


class ImageTextVectors(PredictionFile):
    """Safetensors: `image` (images dim) with `image_id` (images), and `text` (texts dim) with
    `text_image_id` (texts), the image that each text belongs to; the metadata's `image_key` is a
    JSON list of where the images came from.

    An image comes once, however many texts it has. Rows have `image`, `text`, `image_id`, `key`.
    """

    def write(self, rows: Sequence[Row], path: Path) -> None:
        images: dict[int, Row] = {}
        for row in rows:
            images.setdefault(row["image_id"], row)
        vectors = {
            "image": torch.stack([row["image"] for row in images.values()]),
            "image_id": torch.tensor(list(images)),
            "text": torch.stack([row["text"] for row in rows]),
            "text_image_id": torch.tensor([row["image_id"] for row in rows]),
        }
        keys = json.dumps([row["key"] for row in images.values()], ensure_ascii=False)
        save_file(vectors, path, metadata={"image_key": keys})
