"""`index PATH...`: the index of tars that are already there, for example img2dataset's output."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from datamodules.index import (
    ShardError,
    ShardIndex,
    index_path,
    read_index,
    scan_shard,
    write_index,
)
from tools.build_shards.errors import InputError
from tools.build_shards.images import SUFFIXES
from tools.build_shards.progress import ProgressBar

TEXTS = {"txt", "json"}
PICTURES = {suffix.removeprefix(".") for suffix in SUFFIXES}


def index_paths(paths: list[Path]) -> None:
    """Write the index of every tar; raises at the first that cannot be trusted."""
    tars = [tar for path in paths for tar in _tars(path)]
    table = Table()
    for column in ("shard", "samples", "bytes", "index", "without image or text"):
        table.add_column(column, justify="left" if column in ("shard", "index") else "right")
    with ProgressBar("index", len(tars), unit="shards") as bar:
        for tar in tars:
            index = scan_shard(tar)
            verdict = _write(index, tar)
            lacking = len(_lacking(index))
            numbers = (f"{len(index.samples):,}", f"{index.bytes:,}")
            table.add_row(str(tar), *numbers, verdict, f"{lacking:,}")
            bar.advance()
    Console().print(table)


def _tars(path: Path) -> list[Path]:
    """A tar itself, or every tar below a folder."""
    if path.is_dir():
        tars = sorted(path.rglob("*.tar"))
        if not tars:
            raise InputError(f"{path} holds no .tar file.")
        return tars
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    if path.suffix != ".tar":
        raise InputError(f"{path} is not a .tar file.")
    return [path]


def _write(index: ShardIndex, tar: Path) -> str:
    path = index_path(tar)
    try:
        if read_index(path) == index:
            return "unchanged"
    except ShardError:
        pass  # missing or of another tar: written anew
    write_index(index, path)
    return "written"


def _lacking(index: ShardIndex) -> list[str]:
    """Keys of samples that have no image, or neither a .txt nor a .json."""
    keys = []
    for sample in index.samples:
        kinds = set(sample.members)
        if not kinds & PICTURES or not kinds & TEXTS:
            keys.append(sample.key)
    return keys
