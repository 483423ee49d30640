"""What the programs that draw images of shards are given: where to, which shards, which images."""

import random
from pathlib import Path

from datamodules.decoders import Limits
from datamodules.loading import Loading
from datamodules.reading import Samples
from datamodules.sources import expand_shards
from tools.build_shards.errors import InputError

USUAL, MOST = 8, 100
"""Images; more make a picture that no viewer opens."""


def check_place(out: Path) -> None:
    """Refuse a picture that is no PNG, or has no folder."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the picture is a PNG, so name a .png file.")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}, the folder of --out, does not exist.")


def samples_of(shards: str) -> Samples:
    """The samples of shards, on this disk or in its cache."""
    return Samples(expand_shards(shards), Limits(), Path(Loading().cache).expanduser())


def chosen(asked: str | None, count: int, seed: int, option: str = "--queries") -> list[int]:
    """Images by number: those that the value of an option lists, or so many drawn ones."""
    if asked is None:
        asked = str(min(USUAL, count))
    try:
        numbers = [int(number) for number in asked.split(",") if number.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise InputError(f"{option} {asked}: give a number, or numbers of images such as 3,17.")
    if "," not in asked:
        most = min(count, MOST)
        if not 1 <= numbers[0] <= most:
            raise InputError(f"{option} {asked}: there can be 1 to {most} (of {count} images).")
        return sorted(random.Random(seed).sample(range(count), numbers[0]))
    if not all(0 <= number < count for number in numbers) or len(numbers) > MOST:
        raise InputError(
            f"{option} {asked}: images have numbers from 0 to {count - 1}, and at most "
            f"{MOST} can be named."
        )
    return numbers
