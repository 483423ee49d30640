"""Files of recorded routing: an `.npz` that is written and read chunk by chunk.

The `.npz` holds no Python objects. `meta.json` in it says what the layers and names are and gives
the layers' loads, summed; the arrays of chunk 3 begin with `000003/`. docs/experts.md has the list.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mhmoe_mm.callbacks.routing_record import LayerRouting
from mhmoe_mm.callbacks.routing_tokens import CLASSES, MODALITIES, RoutingChunk, Samples, Tokens
from mhmoe_mm.inputs.spelling import Spelling
from mhmoe_mm.moe.routing import Load, total_load
from mhmoe_mm.moe.sparse_layers import Description
from mhmoe_mm.storage.whole import part_of, publish, sync

VERSION = 1
IMAGES = 64
"""In a file, at most, whose pixels are written."""
META = "meta.json"


class RoutingMeta(NamedTuple):
    """What a file of recorded routing says of itself."""

    name: str
    """Of the run."""
    task: str
    step: int | None
    data: str
    """In words, what was read."""
    layers: tuple[Description, ...]
    pieces: tuple[str, ...]
    """What each id of the vocabulary spells; empty where nobody knows."""


class RoutingWriter:
    """Writes an `.npz` of recorded routing; it gets its name when it is complete.

    Args:
        path: of the file.
        meta: what it is.
    """

    def __init__(self, path: Path, meta: RoutingMeta):
        self.path, self.meta = path, meta
        path.parent.mkdir(parents=True, exist_ok=True)
        self._part = part_of(path)
        self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self.loads: dict[str, Load] = {}
        self.chunks = self._images = 0

    def add(self, chunk: RoutingChunk) -> None:
        """Write one forward."""
        place = f"{self.chunks:06d}"
        self.chunks += 1
        for name, values in chunk.samples._asdict().items():
            self._write(f"{place}/sample/{name}", np.array(values, dtype=np.str_))
        for name, array in chunk.tokens._asdict().items():
            self._write(f"{place}/token/{name}", array)
        self._write(f"{place}/grid", np.array(chunk.grid, dtype=np.int32))
        for layer, routing in chunk.layers.items():
            for name, array in routing._asdict().items():
                assert array is not None, "what is written was recorded or read with weights"
                self._write(f"{place}/layer/{layer}/{name}", array)
        if chunk.pixel and self._images < IMAGES:
            self._write(f"{place}/image/row", np.array(list(chunk.pixel), dtype=np.int32))
            self._write(f"{place}/image/pixel", np.stack(list(chunk.pixel.values())))
            self._images += len(chunk.pixel)
        add_loads(self.loads, chunk.loads)

    def _write(self, name: str, array: np.ndarray) -> None:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)

    def close(self) -> None:
        """Finish the file."""
        loads = {name: plain_load(load) for name, load in self.loads.items()}
        meta = self.meta._asdict() | {
            "layers": [layer._asdict() for layer in self.meta.layers],
            "version": VERSION,
            "chunks": self.chunks,
            "modalities": MODALITIES,
            "classes": CLASSES,
            "loads": loads,
        }
        self._zip.writestr(META, json.dumps(meta, ensure_ascii=False))
        self._zip.close()
        sync(self._part)
        publish(self._part, self.path)

    def discard(self) -> None:
        """Give up: leave no file."""
        self._zip.close()
        self._part.unlink(missing_ok=True)


class RoutingReader:
    """Reads files of recorded routing, one chunk in memory at a time.

    Args:
        path: a file, or a folder with a file of every rank.
        weights: read them too.

    Raises:
        ValueError: it is no such file, damaged, or the files do not belong together.
    """

    def __init__(self, path: Path, weights: bool = True):
        self.weights = weights
        self.paths = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        if not self.paths:
            raise ValueError(f"{path} holds no .npz of recorded routing.")
        metas = [self._meta(file) for file in self.paths]
        first = metas[0]
        same = ("name", "task", "step", "layers", "pieces")
        if any(other[key] != first[key] for other in metas for key in same):
            raise ValueError(f"The files in {path} are of different networks or steps.")
        layers = tuple(Description(**layer) for layer in first["layers"])
        given = {name: first[name] for name in RoutingMeta._fields}
        self.meta = RoutingMeta(**given | {"layers": layers, "pieces": tuple(first["pieces"])})
        self.loads: dict[str, Load] = {}
        for meta in metas:
            add_loads(self.loads, {name: load_of(value) for name, value in meta["loads"].items()})
        self._counts = [meta["chunks"] for meta in metas]

    @staticmethod
    def _meta(file: Path) -> dict[str, Any]:
        try:
            with zipfile.ZipFile(file) as archive:
                meta = json.loads(archive.read(META))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{file} is not a file of recorded routing: {error}") from error
        if meta.get("version") != VERSION:
            raise ValueError(
                f"{file} is recorded routing of version {meta.get('version')}, and here version "
                f"{VERSION} is read: record it again."
            )
        return meta

    def __iter__(self) -> Iterator[RoutingChunk]:
        for file, count in zip(self.paths, self._counts, strict=True):
            with zipfile.ZipFile(file) as archive:
                layers = [layer.name for layer in self.meta.layers]
                there = set(archive.namelist())
                for number in range(count):
                    yield _read_chunk(archive, f"{number:06d}", layers, there, self.weights)


def _read_chunk(
    archive: zipfile.ZipFile, place: str, layers: Sequence[str], there: set[str], weights: bool
) -> RoutingChunk:
    def read(name: str) -> np.ndarray:
        try:
            content = archive.read(f"{place}/{name}.npy")
            return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except (KeyError, ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{archive.filename} is damaged: {error}") from error

    rows, columns = read("grid").tolist()
    pixel: dict[int, np.ndarray] = {}
    if f"{place}/image/row.npy" in there:
        pixel = dict(zip(read("image/row").tolist(), read("image/pixel"), strict=True))
    return RoutingChunk(
        Samples(*(read(f"sample/{name}").tolist() for name in Samples._fields)),
        Tokens(*(read(f"token/{name}") for name in Tokens._fields)),
        (rows, columns),
        {
            layer: LayerRouting(
                read(f"layer/{layer}/rows"),
                read(f"layer/{layer}/expert"),
                read(f"layer/{layer}/weight") if weights else None,
            )
            for layer in layers
            if f"{place}/layer/{layer}/rows.npy" in there
        },
        {},
        pixel,
    )


def add_loads(sums: dict[str, Load], loads: dict[str, Load]) -> None:
    """Add loads to sums, in float64, which counts exactly."""
    for name, load in loads.items():
        exact = load._replace(**{f: getattr(load, f).double() for f in Load._fields[:-1]})
        sums[name] = total_load([sums[name], exact]) if name in sums else exact


def plain_load(load: Load) -> dict[str, Any]:
    """A load as lists and numbers."""
    values = {name: getattr(load, name).tolist() for name in Load._fields[:-1]}
    return values | {"names": list(load.names)}


def load_of(plain: dict[str, Any]) -> Load:
    """The load of `plain_load`."""
    values = {n: torch.tensor(plain[n], dtype=torch.float64) for n in Load._fields[:-1]}
    return Load(**values, names=tuple(plain["names"]))


def pieces_of(spelling: Spelling | None) -> tuple[str, ...]:
    """What each id spells, for `RoutingMeta`."""
    if spelling is None:
        return ()
    return tuple(spelling.piece(i) for i in range(len(spelling.spelled)))
