"""What a fine-tuning task says about its data: how many rows a sample has, and how to make one.

A sample of a shard is an image with all that is known about it: ten questions, or five captions.
A row of a batch is one of them. `TaskSamples` is what a config names (its `class_path`);
`TaskRows` is what it makes for one split.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from datamodules.answers import NameList
from datamodules.reading import Sample
from datamodules.sources import Source
from datamodules.transforms import View
from mhmoe_mm.inputs.tokenization import Tokenizer


class Entry(NamedTuple):
    """One row before it is read: a sample, its number over all shards, and which of its parts."""

    sample: Sample
    number: int
    part: int

    @property
    def shard(self) -> str:
        """Where the sample lies, for errors."""
        return self.sample.shard

    @property
    def key(self) -> str:
        """The key of the sample, for errors."""
        return self.sample.key


@dataclass(frozen=True)
class Setting:
    """What the rows of one split depend on besides the task.

    Args:
        source: shards, languages, longest text.
        view: how images are seen.
        tokenizer: for the texts; None in a task without.
        training: whether to augment and corrupt.
    """

    source: Source
    view: View
    tokenizer: Tokenizer | None
    training: bool

    def encode(self, text: str) -> list[int]:
        """`<s> tokens </s>`."""
        assert self.tokenizer is not None, "a task without texts"
        return self.tokenizer.encode(text, self.source.max_tokens)

    @property
    def pad(self) -> int:
        """The id that fills texts up."""
        assert self.tokenizer is not None, "a task without texts"
        return self.tokenizer.pad


class TaskRows(ABC):
    """The rows of a task in one split.

    A row has a field `valid`, which is set to False where it only fills up an evaluation, and a
    method `silent` that does so.
    """

    expands: Hashable = None
    """None where each sample is one row and `parts` need not be asked. Otherwise what the answer of
    `parts` depends on besides the sample: it names the cached index of the rows.
    """

    def parts(self, sample: Sample) -> tuple[list[int], int]:
        """(the parts of a sample that are rows, how many others are left out)."""
        return [0], 0

    @abstractmethod
    def __call__(self, entry: Entry, choice: random.Random) -> Any:
        """The row of an entry; every draw comes from `choice`."""

    def begin(self, entry: Entry, choice: random.Random) -> Callable[[], Any]:
        """What is left to do for the row. A task with texts reads them here and leaves its images,
        so that the texts of a batch come one after the other (see `Feed`).
        """
        return partial(self, entry, choice)

    @abstractmethod
    def collate(self, rows: list[Any]) -> Any:
        """Rows as a batch."""


class TaskSamples(ABC):
    """What a task reads from samples."""

    reads_text = True
    """Whether there must be a tokenizer."""
    reads_languages = False
    """Whether `languages` of a source mean anything."""

    @abstractmethod
    def rows(self, setting: Setting) -> TaskRows:
        """The rows of a split."""

    def classes(self) -> NameList | None:
        """The answers or classes that the model chooses from; None in a task without."""
        return None
