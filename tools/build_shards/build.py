"""Carrying out a plan: keep the shards that are finished, write the others, and the card last."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datamodules.index import ShardError, index_path, read_index
from mhmoe_mm.storage.whole import PART, file_sha256, write_bytes
from tools.build_shards.card import (
    Card,
    list_bytes,
    make_card,
    read_card,
    records_of,
    write_card,
)
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.plan import Plan, PlannedShard
from tools.build_shards.progress import ProgressBar
from tools.build_shards.source import SPLITS
from tools.build_shards.writer import (
    Prepare,
    ShardRecord,
    read_record,
    write_record,
    write_shard,
)

RECORDS = ".build"
LEFTOVERS = (f"[0-9]*{PART}", ".*.index.json.*")
OURS = ("[0-9]*.tar", "[0-9]*.index.json", *LEFTOVERS)


def build(plan: Plan, out: Path, prepare: Prepare, problems: Problems, overwrite: bool) -> Card:
    """Make the folder `out` hold what the plan says; a second call finds nothing left to do."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder.")
    out.mkdir(parents=True, exist_ok=True)
    with _only_builder(out):
        _open_folder(out, plan, overwrite)
        listing = list(problems.found)
        records = []
        total = sum(len(shard.items) for shard in plan.shards)
        with ProgressBar(plan.source, total) as bar:
            for shard in plan.shards:
                record = _kept(shard, out, problems)
                if record is None:
                    record = _write(shard, out, prepare, problems, bar)
                else:
                    bar.advance(len(shard.items))
                records.append(record)
        card = make_card(plan, records, listing)
        if not card["samples"]:
            first = card["skipped"][0]["reason"]
            raise InputError(f"all {len(card['skipped'])} samples were skipped; the first: {first}")
        for name, entries in plan.lists.items():
            write_bytes(out / name, list_bytes(entries))
        write_card(card, out)
        shutil.rmtree(out / RECORDS)
    return card


@contextmanager
def _only_builder(out: Path) -> Iterator[None]:
    """Holds a lock on the folder, so that two builds never write into it at once."""
    handle = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another build is writing into {out}.") from None
        yield
    finally:
        os.close(handle)


def _open_folder(out: Path, plan: Plan, overwrite: bool) -> None:
    """Leave in the folder this plan's plan.json, its finished shards, and nothing half-written."""
    path = out / "plan.json"
    digest = _digest_of(path)
    if digest != plan.digest:
        taken = [name for name in (*SPLITS, "card.json", "plan.json") if (out / name).exists()]
        if taken and not overwrite:
            raise InputError(
                f"{out} holds {'a build with other options or inputs' if digest else taken[0]};"
                " choose another folder, or replace it with --overwrite."
            )
        _clear(out)
        options = {"digest": plan.digest, "source": plan.source, "options": dict(plan.options)}
        write_bytes(path, (json.dumps(options, indent=1) + "\n").encode())
    elif overwrite:
        _clear(out, keep_plan=True)
    for split in SPLITS:
        for pattern in LEFTOVERS:
            for leftover in (out / split).glob(pattern):
                leftover.unlink()
    for folder in (out, out / RECORDS):
        for leftover in folder.glob(f"*.json.*{PART}"):
            leftover.unlink()
    _unfold_card(out)


def _digest_of(path: Path) -> str | None:
    try:
        return json.loads(path.read_bytes())["digest"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _clear(out: Path, keep_plan: bool = False) -> None:
    """Remove what a build wrote and nothing else, the card first: no stage looks finished."""
    (out / "card.json").unlink(missing_ok=True)
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    for split in SPLITS:
        for pattern in OURS:
            for path in (out / split).glob(pattern):
                path.unlink()
    if not keep_plan:
        (out / "plan.json").unlink(missing_ok=True)


def _unfold_card(out: Path) -> None:
    """Turn the card of a finished build back into records; without it no rebuild looks finished."""
    (out / RECORDS).mkdir(exist_ok=True)
    if (out / "card.json").exists():
        try:
            finished = records_of(read_card(out))
        except InputError:
            finished = []  # a damaged card: every shard is built again
        for record in finished:
            write_record(record, _record_path(out, record.split, record.shard))
        (out / "card.json").unlink()


def _record_path(out: Path, split: str, shard: str) -> Path:
    return out / RECORDS / f"{split}-{shard}.json"


def _kept(shard: PlannedShard, out: Path, problems: Problems) -> ShardRecord | None:
    """The record of a shard that is finished and undamaged."""
    tar = out / shard.split / shard.name
    try:
        record = read_record(_record_path(out, shard.split, shard.name))
        if record.skipped and not problems.skip:
            return None
        if not record.samples:
            return record
        index = read_index(index_path(tar))
        sha256 = file_sha256(tar)
    except (FileNotFoundError, ShardError, ValueError, TypeError):
        return None
    intact = sha256 == index.sha256 == record.sha256 and len(index.samples) == record.samples
    return record if intact and index.shard == shard.name else None


def _write(
    shard: PlannedShard, out: Path, prepare: Prepare, problems: Problems, bar: ProgressBar
) -> ShardRecord:
    folder = out / shard.split
    folder.mkdir(exist_ok=True)
    (folder / shard.name).unlink(missing_ok=True)
    index_path(folder / shard.name).unlink(missing_ok=True)
    record_path = _record_path(out, shard.split, shard.name)
    return write_shard(shard, folder, record_path, prepare, problems, bar.advance)
