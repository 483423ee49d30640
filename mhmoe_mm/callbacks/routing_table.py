"""Recorded routing as a `.parquet` table, for tools that read tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mhmoe_mm.callbacks.routing_file import RoutingMeta
from mhmoe_mm.callbacks.routing_tokens import CLASSES, MODALITIES, RoutingChunk
from mhmoe_mm.storage.whole import part_of, publish, sync


class RoutingTable:
    """Writes a table with a row per sub-token, layer and choice; docs/experts.md has its columns.

    Args:
        path: of the file, which gets its name when it is complete.
        meta: what it is.

    Raises:
        ValueError: pyarrow is not installed.
    """

    def __init__(self, path: Path, meta: RoutingMeta):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ValueError(
                "A .parquet file needs pyarrow: pip install 'mhmoe-mm[text]', or dump to .npz."
            ) from error
        self._arrow = pyarrow
        self.path, self.meta = path, meta
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part = part_of(path)
        self._writer: Any = None
        self._samples = 0
        self._spelled, self._pieces = _codes([*meta.pieces, ""], np.arange(len(meta.pieces) + 1))

    def add(self, chunk: RoutingChunk) -> None:
        """Write one forward."""
        for layer in chunk.layers:
            table = self._arrow.table(self._columns(chunk, layer))
            if self._writer is None:
                self._writer = self._arrow.parquet.ParquetWriter(
                    self._part, table.schema, compression="zstd"
                )
            self._writer.write_table(table)
        self._samples += len(chunk.samples.key)

    def _columns(self, chunk: RoutingChunk, layer: str) -> dict[str, Any]:
        routing = chunk.layers[layer]
        assert routing.weight is not None, "what is written was recorded or read with weights"
        heads, choices = routing.expert.shape[1:]
        token = np.repeat(routing.rows, heads * choices)
        place = np.tile(np.arange(heads * choices), len(routing.rows))
        of = {name: array[token] for name, array in chunk.tokens._asdict().items()}
        about = chunk.samples._asdict()
        columns = {"sample": of.pop("sample").astype(np.int64)}
        named = {n: self._coded(*_codes(values, columns["sample"])) for n, values in about.items()}
        columns["sample"] += self._samples
        columns |= named | of
        columns |= {
            "modality": self._coded(of["modality"], MODALITIES),
            "token_class": self._coded(of["token_class"], CLASSES),
            "layer": self._coded(np.zeros(len(token)), [layer]),
            "head": (place // choices).astype(np.int16),
            "choice": (place % choices).astype(np.int16),
            "expert": routing.expert.reshape(-1).astype(np.int16),
            "weight": routing.weight.reshape(-1).astype(np.float32),
        }
        if self.meta.pieces:
            # Images have the id -1, and the last of the pieces is empty.
            columns["piece"] = self._coded(self._spelled[of["vocabulary_id"]], self._pieces)
        return columns

    def _coded(self, codes: np.ndarray, names: Sequence[str]) -> Any:
        arrow = self._arrow
        return arrow.DictionaryArray.from_arrays(
            arrow.array(codes.astype(np.int32)), arrow.array(list(names), arrow.string())
        )

    def close(self) -> None:
        """Finish the file; without a row there is none."""
        if self._writer is not None:
            self._writer.close()
            sync(self._part)
            publish(self._part, self.path)

    def discard(self) -> None:
        """Give up: leave no file."""
        if self._writer is not None:
            self._writer.close()
        self._part.unlink(missing_ok=True)


def _codes(values: Sequence[str], index: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """`values[index]` as codes of the different ones."""
    names = list(dict.fromkeys(values))
    code = {name: place for place, name in enumerate(names)}
    return np.array([code[value] for value in values])[index], names
