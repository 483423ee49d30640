"""What every reader of raw data hands to the builder: items whose images are read when needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "val", "test")
UNKNOWN_LANGUAGE = "und"


@dataclass(frozen=True)
class Item:
    """One image with its texts, not yet read."""

    id: str
    """Unique in its source; the split and the order are functions of it."""
    split: str | None
    """train, val or test; None where the source does not say."""
    captions: Mapping[str, tuple[str, ...]]
    """Language code -> captions, the first language first; `und` where it is not known. Empty where
    there are none.
    """
    read: Callable[[], bytes]
    """The bytes of the image; raises InputError where they cannot be had."""
    where: str
    """How a sentence calls this item, for example `captions.tsv line 4 (a.png)`."""
    size: int
    """Bytes of the image as the source has it, for shards cut by bytes."""
    stamp: str = ""
    """What changes when the image changes, where `Source.inputs` does not already tell."""
    qa: tuple[Mapping[str, object], ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    """More entries of the sample's .json."""
    right: Callable[[], bytes] | None = None
    """The second image of a pair, stored as `.right.png` beside `.left.png`."""
    label: int | None = None
    """The class of the image, stored as `.cls`."""


@dataclass(frozen=True)
class Source:
    """All items of a data set."""

    name: str
    items: tuple[Item, ...]
    inputs: Mapping[str, str | int]
    """What the items came from: names with content hashes, or the numbers given to a generator."""
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Lists that lie beside the card as JSON, by file name: `answers.json`, `classes.json`."""


def one_line(text: str) -> str:
    """`text` with every run of white space as one blank: a caption is one line of a .txt."""
    return " ".join(text.split())
