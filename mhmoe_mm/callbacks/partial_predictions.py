"""Predictions on their way to a file: kept batch by batch, so that an interruption loses none.

    FOLDER/predictions.partial/manifest.json       what they are predictions of
    FOLDER/predictions.partial/rank-00000.jsonl    a line a batch: [[place, key, row], ...]

`place` is the row's number in the data set, `key` where its sample came from. A line is written at
once, so only the last can be half there.
"""

import base64
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhmoe_mm.storage.whole import write_text

SYNC_S = 5.0
"""Seconds after which what was written is made safe against a power failure too."""


class Kept(NamedTuple):
    """A row that was predicted."""

    place: int
    key: str
    row: dict[str, Any]


class PartialPredictions:
    """The folder of partial files.

    Args:
        folder: where the final file will lie.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "predictions.partial"
        self.manifest = self.folder / "manifest.json"
        self._file: int | None = None
        self._synced = 0.0

    def differences(self, manifest: Mapping[str, Any]) -> list[str]:
        """What an earlier, interrupted run was another in, a sentence part each; empty without one.

        Raises ValueError where its manifest cannot be read.
        """
        if not self.manifest.exists():
            return []
        try:
            there = {**json.loads(self.manifest.read_text(encoding="utf-8"))}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.manifest} is not a manifest of predictions ({error}): remove "
                f"{self.folder} to start over."
            ) from error
        here = json.loads(json.dumps(manifest))
        return [
            f"{name}: {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder, or make it ready to go on: half-written last lines are dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.manifest.exists():
            write_text(self.manifest, json.dumps(manifest, indent=1))
        for path in self._paths():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)

    def read(self) -> Iterator[Kept]:
        """All rows kept so far, over all ranks, in no order."""
        for path in self._paths():
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    try:
                        kept = [Kept(*entry) for entry in json.loads(line, object_hook=_vector)]
                    except (ValueError, TypeError) as error:
                        raise ValueError(
                            f"{path}:{number} is damaged ({error}): remove this line, and its rows "
                            "are predicted again."
                        ) from error
                    yield from kept

    def open(self, rank: int) -> None:
        """Let this rank append."""
        path = self.folder / f"rank-{rank:05d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, rows: Iterable[Kept]) -> None:
        """Keep the rows of a batch, all or none of them."""
        assert self._file is not None, "opened before"
        line = json.dumps([*rows], default=_encoded, ensure_ascii=False) + "\n"
        content = memoryview(line.encode())
        while content:
            content = content[os.write(self._file, content) :]
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Make safe what was written."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None

    @property
    def is_open(self) -> bool:
        """Whether this rank may append."""
        return self._file is not None

    def remove(self) -> None:
        """The final file is there."""
        shutil.rmtree(self.folder)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("rank-*.jsonl"))


def _encoded(value: Any) -> dict[str, str]:
    """A vector as JSON, to the bit."""
    if not isinstance(value, Tensor):
        raise TypeError(f"a prediction cannot hold a {type(value).__name__}")
    content = value.detach().cpu().float().numpy().astype("<f4").tobytes()
    return {"float32": base64.b64encode(content).decode()}


def _vector(value: dict[str, Any]) -> Any:
    if value.keys() != {"float32"}:
        return value
    return torch.from_numpy(np.frombuffer(base64.b64decode(value["float32"]), "<f4").copy())
