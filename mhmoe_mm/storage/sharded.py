"""Checkpoints of which every rank writes its share, into one folder.

    checkpoint.ckpt/
      __0_0.distcp __1_0.distcp ...   the ranks' shares        torch's distributed checkpoints
      .metadata                       what is where            likewise
      meta.pt                         all that is no tensor of the network or the optimizer
      manifest.json                   sizes and sha256 of all these; written last

The folder gets its name when all of it is on the disk. It can be read by any number of ranks, or by
one process without any. Nothing that it holds is run: torch reads `.metadata` by an unrestricted
pickle, here only the few classes that belong there are let in.
"""

import hashlib
import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from mhmoe_mm.storage.sealed import Damaged, read_sealed, save_sealed
from mhmoe_mm.storage.whole import (
    file_sha256,
    new_folder,
    part_of,
    publish_folder,
    sync,
    write_text,
)

META, MANIFEST, METADATA = "meta.pt", "manifest.json", ".metadata"
_ALLOWED = {
    "torch": {"Size", "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32",
              "int64", "uint8", "uint16", "uint32", "uint64", "bool", "strided"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath"},
    "builtins": {"set", "frozenset"},
    "collections": {"OrderedDict"},
}  # fmt: skip


def is_sharded(path: Path) -> bool:
    """Whether it is the folder of such a checkpoint, or what is left of one."""
    return path.is_dir() and any((path / name).exists() for name in (META, MANIFEST, METADATA))


def save_sharded(
    tensors: dict[str, Any],
    rest: dict[str, Any],
    folder: Path,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint; all ranks call it together, a single process without a group may too.

    Args:
        tensors: state dicts, nested; what is sharded is written by those that hold it.
        rest: plain values and small tensors, as rank 0 has them.
        folder: that the checkpoint becomes, on a file system that all ranks share; one that is
            there already is replaced.
        group: of all ranks, through which they talk; their usual one, unless a thread writes beside
            a training that uses it.

    Raises:
        OSError: a rank cannot write; raised on all, and what was there before stays.
    """
    rank = _rank()
    part = part_of(folder)
    _together(lambda: new_folder(folder) if rank == 0 else None, group)
    writer = FileSystemWriter(part)
    _plainly(lambda: dcp.save(tensors, storage_writer=writer, process_group=group), folder)
    if rank == 0:
        own = _together(lambda: _write_rest(rest, part), group)
    else:
        own = _together(lambda: _described(part, sorted(part.glob(f"__{rank}_*.distcp"))), group)
    described = _gathered(own, group)
    _together(lambda: _publish(described, part, folder) if rank == 0 else None, group)


def load_sharded(
    tensors: dict[str, Any],
    folder: Path,
    optional: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Read a checkpoint into tensors that are there, however they are sharded; all ranks call it.

    Args:
        tensors: state dicts, nested, all of which the checkpoint has.
        folder: the checkpoint.
        optional: by name, what makes the tensors of state dicts that it may have; those that it has
            are added to `tensors`.

    Returns:
        The rest.

    Raises:
        Damaged: the folder is not what was written; raised on all ranks before any tensor changes.
    """
    verify_sharded(folder)
    reader, planner = SafeReader(folder), SafePlanner()
    if optional:
        held = {name.split(".", 1)[0] for name in reader.read_metadata().state_dict_metadata}
        tensors |= {name: make() for name, make in optional.items() if name in held}
    _plainly(lambda: dcp.load(tensors, storage_reader=reader, planner=planner), folder)
    return read_rest(folder)


def read_whole(folder: Path, prefix: str = "") -> dict[str, Any]:
    """All that is in the shards, nested as it was written, on the CPU, by this process alone.

    Args:
        folder: the checkpoint; verified by who calls.
        prefix: of the names that are read, such as `state_dict.`
    """
    reader = SafeReader(folder)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {}
    for name, known in metadata.state_dict_metadata.items():
        if not name.startswith(prefix):
            continue
        if isinstance(known, TensorStorageMetadata):
            flat[name] = torch.empty(known.size, dtype=known.properties.dtype)
        else:
            flat[name] = None
    planner = SafePlanner()
    _plainly(lambda: dcp.load(flat, storage_reader=reader, planner=planner, no_dist=True), folder)
    return _nested(flat, metadata.planner_data)


def read_rest(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds besides the shards, without running code."""
    return read_sealed(folder / META)


def verify_sharded(folder: Path) -> None:
    """Compare the files of a checkpoint with its manifest; the ranks share them out.

    Raises:
        Damaged: one is missing or changed, or the manifest is; raised on all ranks.
    """
    ranks = dist.get_world_size() if _grouped() else 1
    _together(lambda: _verify(folder, _rank(), ranks))


class SafeReader(FileSystemReader):
    """Reads a folder; `.metadata` may hold the few classes that belong there, and nothing else."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / METADATA
        with path.open("rb") as file:
            try:
                metadata = _Restricted(file).load()
            except Exception as error:  # pickle raises many kinds over what it cannot read
                raise Damaged(f"{path} cannot be read safely: {error}.") from error
        if not isinstance(metadata, Metadata):
            raise Damaged(f"{path} holds a {type(metadata).__name__}, not what it should.")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class SafePlanner(DefaultLoadPlanner):
    """Reads values that are no tensors without running what they say."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            raise Damaged(
                f"{read_item.dest_index.fqn} cannot be read safely: it is no plain value."
            ) from error
        value.seek(0)
        super().load_bytes(read_item, value)


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong there")
        return super().find_class(module, name)


def _write_rest(rest: Mapping[str, Any], part: Path) -> dict[str, Any]:
    save_sealed(rest, part / META)
    files = [part / META, part / METADATA, *sorted(part.glob("__0_*.distcp"))]
    return _described(part, files)


def _described(part: Path, files: list[Path]) -> dict[str, Any]:
    """Size and sha256 of files, which are then on the disk."""
    found = {}
    for file in files:
        sync(file)
        found[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    return found


def _publish(described: list[dict[str, Any]], part: Path, folder: Path) -> None:
    files = {name: known for each in described for name, known in each.items()}
    content = {"format": 1, "ranks": len(described), "torch": torch.__version__, "files": files}
    text = json.dumps(content, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_text(part / MANIFEST, f"{text}\n{digest}\n")
    publish_folder(folder)


def _verify(folder: Path, rank: int, ranks: int) -> None:
    path = folder / MANIFEST
    if not path.is_file():
        raise Damaged(f"{folder} is not a checkpoint, or not a whole one: it has no {MANIFEST}.")
    try:
        text, digest, rest = path.read_text(encoding="utf-8").rsplit("\n", 2)
    except ValueError:
        text = digest = rest = ""
    if rest or hashlib.sha256(text.encode()).hexdigest() != digest:
        raise Damaged(f"{path} is damaged: it is not what was written (sha256).")
    files = json.loads(text)["files"]
    for name in sorted(files)[rank::ranks]:
        file, known = folder / name, files[name]
        if not file.is_file():
            raise Damaged(f"{folder} is not whole: {name} is missing.")
        if file.stat().st_size != known["bytes"] or file_sha256(file) != known["sha256"]:
            raise Damaged(f"{file} is damaged: it is not what was written (sha256).")


def _nested(flat: Mapping[str, Any], paths: Mapping[str, tuple]) -> dict[str, Any]:
    """Values at the places that they had; a list becomes one again."""
    tree: dict[Any, Any] = {}
    for name, value in flat.items():
        *path, last = paths[name]
        place = tree
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    listed = _listed(tree)
    assert isinstance(listed, dict)
    return listed


def _listed(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    values = {key: _listed(value) for key, value in tree.items()}
    if values and all(isinstance(key, int) for key in values):
        return [values[key] for key in sorted(values)]
    return values


def _plainly(work: Callable[[], object], folder: Path) -> None:
    """Let torch save or load; what then fails on a rank is raised as what it was, on all."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            work()
    except CheckpointException as raised:  # no Exception by its class
        first = next((failure[0] for failure in raised.failures.values()), raised)
        if isinstance(first, Damaged | OSError):
            raise first from None
        reason = (str(first).splitlines() or [type(first).__name__])[0]
        raise Damaged(f"{folder} cannot be read or written: {reason}") from first


def _together(work: Callable[[], Any], group: dist.ProcessGroup | None = None) -> Any:
    """Do something on every rank; where it fails on one, all raise what the first of them did."""
    result, error = None, None
    try:
        result = work()
    except Exception as raised:  # whatever it is, the others must not wait for this rank
        error = raised
    own = None if error is None else (type(error), str(error))
    told = [each for each in _gathered(own, group) if each]
    if not told:
        return result
    if error is not None:
        raise error
    kind, message = told[0]
    raise (kind if issubclass(kind, (Damaged, OSError)) else RuntimeError)(message)


def _gathered(own: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    if not _grouped():
        return [own]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own, group)
    return everyone


def _rank() -> int:
    return dist.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()
