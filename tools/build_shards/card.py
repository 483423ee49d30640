"""The card of a data folder: what lies in it and what it was made with.

It is written last; without it a build is unfinished.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mhmoe_mm.storage.whole import write_bytes
from tools.build_shards.errors import InputError, Problem
from tools.build_shards.plan import Plan
from tools.build_shards.source import SPLITS
from tools.build_shards.writer import ShardRecord

FORMAT = 1
LEFT = ("split", "languages")
Card = dict[str, Any]


def list_bytes(entries: Iterable[str]) -> bytes:
    """A list as it lies beside the card: JSON, one entry a line."""
    return (json.dumps(list(entries), ensure_ascii=False, indent=0) + "\n").encode()


def make_card(plan: Plan, records: list[ShardRecord], listing: Iterable[Problem]) -> Card:
    """`listing`: the samples that were skipped before there was a plan; they have no shard."""
    splits = {}
    for split in SPLITS:
        here = [record for record in records if record.split == split]
        if any(record.samples for record in here):
            splits[split] = {
                "samples": sum(record.samples for record in here),
                "bytes": sum(record.bytes for record in here),
                "captions": dict(sum((Counter(record.captions) for record in here), Counter())),
                "questions": sum(record.questions for record in here),
                "shards": [_shard_entry(record) for record in here if record.samples],
            }
    skipped = [{**asdict(problem), "shard": None} for problem in listing]
    for record in records:
        label = f"{record.split}/{record.shard}"
        skipped += [{**problem, "shard": label} for problem in record.skipped]
    return {
        "format": FORMAT,
        "source": plan.source,
        "inputs": dict(plan.inputs),
        "options": dict(plan.options),
        "samples": sum(record.samples for record in records),
        "languages": sorted({code for record in records for code in record.captions}),
        "splits": splits,
        "lists": {
            name: {"entries": len(entries), "sha256": sha256(list_bytes(entries)).hexdigest()}
            for name, entries in plan.lists.items()
        },
        "skipped": skipped,
    }


def records_of(card: Card) -> list[ShardRecord]:
    """The records that a card was made of, except those of shards without samples."""
    records = []
    for split, about in card["splits"].items():
        for entry in about["shards"]:
            label = f"{split}/{entry['shard']}"
            skipped = [
                {"id": problem["id"], "reason": problem["reason"]}
                for problem in card["skipped"]
                if problem["shard"] == label
            ]
            records.append(ShardRecord(split=split, skipped=skipped, **entry))
    return records


def write_card(card: Card, out: Path) -> None:
    text = json.dumps(card, ensure_ascii=False, indent=1) + "\n"
    write_bytes(out / "card.json", text.encode())


def read_card(out: Path) -> Card:
    """The card of a folder; raises InputError where it cannot be read."""
    path = out / "card.json"
    try:
        card = json.loads(path.read_bytes())
        if card["format"] != FORMAT:
            raise InputError(
                f"{path} has the format {card['format']}; this version reads {FORMAT}."
            )
        records_of(card)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a card of built shards ({error!r}).") from error
    return card


def print_card(card: Card, out: Path) -> None:
    """The short table at the end of a build, and every skipped sample."""
    table = Table(title=f"{card['source']} in {out}", title_justify="left")
    for column in ("split", "samples", "shards", "bytes", "captions", "questions", "languages"):
        table.add_column(column, justify="left" if column in LEFT else "right")
    for split, about in card["splits"].items():
        captions = about["captions"]
        numbers = [about["samples"], len(about["shards"]), about["bytes"], sum(captions.values())]
        numbers.append(about["questions"])
        table.add_row(split, *(f"{number:,}" for number in numbers), " ".join(captions))
    console = Console()
    console.print(table)
    for name, about in card["lists"].items():
        console.print(f"{name}: {about['entries']:,} entries", highlight=False)
    console.print(f"skipped: {len(card['skipped'])}")
    for problem in card["skipped"]:
        console.print(f"skipped {problem['id']}: {problem['reason']}", markup=False)


def _shard_entry(record: ShardRecord) -> dict[str, object]:
    entry = asdict(record)
    del entry["split"], entry["skipped"]
    return entry
