"""Predictions on their way to a file: kept batch by batch, so that an interruption loses none.

    FOLDER/predictions.partial/manifest.json       what they are predictions of
    FOLDER/predictions.partial/rank-00000.jsonl    a line a batch: [[place, key, row], ...]

`place` is the row's number in the data set, `key` where its sample came from; `row` is null where
the sample could not be read. A line is written at once, so only the last can be half there.
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

SYNC_S = 5.0
"""Seconds after which what was written is made safe against a power failure too."""


class Kept(NamedTuple):
    """A row that was predicted."""

    place: int
    key: str
    row: dict[str, Any] | None


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
            there = json.loads(self.manifest.read_text(encoding="utf-8"))
            shared = {**there}
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.manifest} is not a manifest of predictions ({error}): remove "
                f"{self.folder} to start over."
            ) from error
        return [
            f"{name}: {shared.get(name)!r} there, {manifest.get(name)!r} here"
            for name in sorted(shared.keys() | manifest.keys())
            if shared.get(name) != manifest.get(name)
        ]

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder, or make it ready to go on: half-written last lines are dropped."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.manifest.exists():
            replace(self.manifest, json.dumps(manifest, indent=1).encode())
        for path in self._paths():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(path, whole)

    def read(self) -> Iterator[Kept]:
        """All rows kept so far, over all ranks, in no order; a row may come twice."""
        for path in self._paths():
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if not line.endswith("\n"):
                        return
                    try:
                        yield from (Kept(*entry) for entry in json.loads(line, object_hook=_vector))
                    except (ValueError, TypeError) as error:
                        raise ValueError(
                            f"{path}:{number} is damaged ({error}): remove this line, and its rows "
                            "are predicted again."
                        ) from error

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

    def remove(self) -> None:
        """The final file is there."""
        shutil.rmtree(self.folder)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("rank-*.jsonl"))


def replace(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


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
