"""OpenMoji's zip: `captions.tsv` (split, image, en, de, fr, es) and `images/*.png`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mhmoe_mm.storage.whole import file_sha256
from tools.build_shards.archive import open_archive
from tools.build_shards.captions import read_rows
from tools.build_shards.errors import Problems
from tools.build_shards.source import Item, Source


@contextmanager
def open_openmoji(path: Path, problems: Problems) -> Iterator[Source]:
    with open_archive(path) as archive:
        rows = read_rows(archive.read("captions.tsv"), "captions.tsv", problems)
        items = []
        for row in rows:
            member = f"images/{row.image}"
            if member not in archive.members:
                problems.add(row.image, f"{row.where} names {member}, which is not in {path}.")
                continue
            items.append(
                Item(
                    id=row.image,
                    split=row.split,
                    captions=row.captions,
                    read=partial(archive.read, member),
                    where=f"{path.name}, {row.where} ({row.image})",
                    size=archive.size(member),
                )
            )
        listed = {row.image for row in rows} | {problem.id for problem in problems.found}
        for member in sorted(archive.members):
            name = member.removeprefix("images/")
            if member.startswith("images/") and name not in listed:
                problems.add(name, f"{member} in {path} has no caption in captions.tsv.")
        yield Source("openmoji", tuple(items), {path.name: file_sha256(path)})
