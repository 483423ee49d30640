"""Check built shards: `python -m tools.check_shards DIR...`.

Every shard against its index (bytes, sha256, where each member lies) and against the card, every
image by decoding it, every sample for a caption or a class. Prints a table; each problem is one
sentence on stderr, and then the exit code is 1.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from datamodules.index import ShardError, ShardIndex, index_path, read_index, scan_shard
from mhmoe_mm.storage.whole import PART
from tools.build_shards.card import read_card, records_of
from tools.build_shards.errors import InputError, run_reporting
from tools.build_shards.images import SUFFIXES, checked
from tools.build_shards.progress import ProgressBar
from tools.build_shards.reading import StoredSample, read_samples
from tools.build_shards.texts import TEXT_MEMBERS, captions_in
from tools.build_shards.writer import ShardRecord

PICTURES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
LEFT, RIGHT = (frozenset(f"{side}.{kind}" for kind in PICTURES) for side in ("left", "right"))
FOUND_PROBLEMS = 1


@dataclass
class Finding:
    """What was found in one shard."""

    shard: Path
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    captions: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run check_shards; returns the exit code: 1 with problems, 2 with bad input."""
    parser = argparse.ArgumentParser(prog="python -m tools.check_shards", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--max-pixels", type=int, default=50_000_000, metavar="N")
    arguments = parser.parse_args(argv)
    return run_reporting(
        lambda: _check_all(arguments.folders, arguments.max_pixels), "Interrupted."
    )


def _check_all(folders: list[Path], max_pixels: int) -> int:
    table = Table()
    table.add_column("shard", overflow="fold")
    for column in ("samples", "bytes", "captions", "problems"):
        table.add_column(column, justify="right")
    table.add_column("languages")
    problems: list[str] = []
    for folder in folders:
        findings, about_folder = check_folder(folder, max_pixels)
        problems += about_folder
        for finding in findings:
            problems += finding.problems
            numbers = [finding.samples, finding.bytes, finding.captions.total()]
            numbers.append(len(finding.problems))
            cells = (f"{number:,}" for number in numbers)
            table.add_row(str(finding.shard), *cells, " ".join(sorted(finding.captions)))
    Console().print(table)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems):,} problems." if problems else "Everything agrees.")
    return FOUND_PROBLEMS if problems else 0


def check_folder(folder: Path, max_pixels: int) -> tuple[list[Finding], list[str]]:
    """What is in each shard below a folder, and what is wrong with the folder as a whole."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist or is not a folder.")
    shards = sorted(folder.rglob("*.tar"))
    if not shards and not (folder / "plan.json").exists():
        raise InputError(f"{folder} holds no .tar shard.")
    with ProgressBar(str(folder), len(shards), unit="shards") as bar:
        findings = []
        for shard in shards:
            findings.append(_check_shard(shard, max_pixels))
            bar.advance()
    return findings, [*_leftovers(folder), *_against_card(folder, findings)]


def _check_shard(shard: Path, max_pixels: int) -> Finding:
    finding = Finding(shard)
    try:
        index = read_index(index_path(shard))
        found = scan_shard(shard)
    except ShardError as error:
        finding.problems.append(f"{shard}: {error}")
        return finding
    finding.samples, finding.bytes, finding.sha256 = len(found.samples), found.bytes, found.sha256
    if found != index:
        finding.problems.append(_difference(shard, index, found))
        return finding
    for sample in read_samples(shard, PICTURES | LEFT | RIGHT | TEXT_MEMBERS | {"cls"}):
        for reason in _faults(sample, max_pixels, finding.captions):
            finding.problems.append(reason)
    return finding


def _difference(shard: Path, index: ShardIndex, found: ShardIndex) -> str:
    for what in ("shard", "bytes", "sha256"):
        said, is_ = getattr(index, what), getattr(found, what)
        if said != is_:
            return f"{shard}: the index says {what} {said}, the tar has {is_}."
    return (
        f"{shard}: the index lists other samples or places than the tar"
        f" ({len(index.samples)} and {len(found.samples)} samples)."
    )


def _faults(sample: StoredSample, max_pixels: int, captions: Counter[str]) -> Iterator[str]:
    members = sample.members.keys()
    pictures = [name for name in sample.members if name in PICTURES | LEFT | RIGHT]
    counts = [len(members & names) for names in (PICTURES, LEFT, RIGHT)]
    if counts not in ([1, 0, 0], [0, 1, 1]):
        yield f"{sample.where}: there are {len(pictures)} images instead of one, or a pair."
    for extension in pictures:
        try:
            checked(sample.members[extension], sample.where, max_pixels)
        except InputError as error:
            yield str(error)
    try:
        texts = captions_in(sample)
    except InputError as error:
        yield str(error)
        return
    captions.update({code: len(lines) for code, lines in texts.items()})
    if not texts and "cls" in sample.members:
        return
    if not texts or not all(lines and all(map(str.strip, lines)) for lines in texts.values()):
        yield f"{sample.where}: a caption is missing or empty."


def _leftovers(folder: Path) -> Iterator[str]:
    for path in sorted([*folder.rglob(f"*{PART}"), *folder.rglob(".*.index.json.*")]):
        yield f"{path}: left behind by a build that was stopped; run it again."
    for path in sorted(folder.rglob("*.index.json")):
        if not path.name.startswith(".") and not _tar_of(path).exists():
            yield f"{path}: there is an index but no {_tar_of(path).name}."


def _tar_of(index: Path) -> Path:
    return index.with_name(index.name.removesuffix(".index.json") + ".tar")


def _against_card(folder: Path, findings: list[Finding]) -> Iterator[str]:
    """Folders that build_shards made have a card; tars that were only indexed have none."""
    if not (folder / "card.json").exists():
        if (folder / "plan.json").exists():
            yield f"{folder}: there is no card.json, so the build is unfinished; run it again."
        return
    try:
        records = {folder / r.split / r.shard: r for r in records_of(read_card(folder))}
    except InputError as error:
        yield str(error)
        return
    found = {finding.shard: finding for finding in findings}
    for path in sorted(records.keys() - found.keys()):
        yield f"{path}: the card lists this shard, but it is not there."
    for path in sorted(found.keys() - records.keys()):
        yield f"{path}: this shard is there, but the card does not list it."
    for path in sorted(found.keys() & records.keys()):
        yield from _against_record(found[path], records[path])


def _against_record(finding: Finding, record: ShardRecord) -> Iterator[str]:
    if not finding.sha256:  # unreadable: already told
        return
    for what in ("samples", "bytes", "sha256"):
        said, is_ = getattr(record, what), getattr(finding, what)
        if said != is_:
            yield f"{finding.shard}: the card says {what} {said}, the shard has {is_}."
    if not finding.problems and dict(finding.captions) != record.captions:
        yield (
            f"{finding.shard}: the card counts captions {record.captions}, the shard has"
            f" {dict(finding.captions)}."
        )


if __name__ == "__main__":
    sys.exit(main())
