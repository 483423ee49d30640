"""Documents cut into rows of equal length, without waste.

The documents of a file are one stream, each followed by `</s>`, and the stream is a circle: what
comes before its first token is its last `</s>`. A row of `context` tokens predicts as many places
of it, so that in an epoch every token is predicted exactly once, the first of each document from
the `</s>` in front of it:

    stream   H e l l o </s> Y o u </s>            context 4
    row 0    </s> H  e  l      -> H e l l
    row 1    l    o </s> Y     -> o </s> Y o
    row 2    o    u </s> H     -> u </s>          the last row is filled up with what follows on the
                                                  circle, of which nothing is predicted

So `</s>` opens a document where it is read and ends one where it is predicted.

In training each epoch begins elsewhere on the circle, and may put the documents in another order:
the cuts fall anew, and a token is seen after other texts.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from datamodules.order import Order, permutation, seeded
from datamodules.recent import Recent
from datamodules.token_files import TokenFile
from mhmoe_mm.batches import IGNORED, LanguageBatch

MAX_EPOCHS = 2**20


class LanguageRow(NamedTuple):
    """One row; the arrays are int64 (context)."""

    token: np.ndarray
    target: np.ndarray
    document: np.ndarray
    num_bytes: int
    language: str
    key: str
    valid: bool = True

    def silent(self) -> "LanguageRow":
        """The same row as padding."""
        return self._replace(valid=False)


class Stream:
    """The documents of a file as a circle of tokens, for every epoch.

    Args:
        file: the tokens.
        seed: of where an epoch begins, and of the order of the documents; None leaves both as they
            are in the file.
        shuffle: put the documents in another order in each epoch.
    """

    def __init__(self, file: TokenFile, seed: int | None, shuffle: bool):
        self.file = file
        self.seed = seed
        self.shuffle = shuffle and seed is not None
        self._orders: Recent[tuple[np.ndarray, np.ndarray]] = Recent(2)

    def read(self, epoch: int, place: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 (length): ids from a place of an epoch's circle on, and the bytes of each."""
        if self.seed is not None:
            place += seeded(self.seed, "start", self.file.language, epoch).randrange(len(self.file))
        parts = [self.file.read(start, stop) for start, stop in self._pieces(epoch, place, length)]
        token, num_bytes = zip(*parts, strict=True)
        return np.concatenate(token), np.concatenate(num_bytes)

    def _pieces(self, epoch: int, place: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, stop) of the parts of the file that follow each other there."""
        while length > 0:
            place %= len(self.file)
            start, stop = self._longest(epoch, place)
            stop = min(stop, start + length)
            yield start, stop
            place += stop - start
            length -= stop - start

    def _longest(self, epoch: int, place: int) -> tuple[int, int]:
        """The part of the file that lies in one piece from a place on."""
        if not self.shuffle:
            return place, len(self.file)
        order, ends = self._orders.get(epoch, lambda: self._order(epoch))
        at = int(np.searchsorted(ends, place, side="right"))
        stop = int(self.file.document_end[order[at]])
        return stop - (int(ends[at]) - place), stop

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        assert self.seed is not None
        ends = self.file.document_end
        order = permutation(len(ends), self.seed, "documents", self.file.language, epoch)
        return order, np.cumsum(np.diff(ends, prepend=0)[order])


class PackedRows:
    """The rows of some files by number: row r of epoch e, over all files, is `e * total + r`.

    Args:
        files: those of one language side by side.
        context: tokens a row.
        seed: None for an evaluation, which sees the files as they are, in every epoch.
        shuffle_documents: whether training puts documents in another order in each epoch.
    """

    def __init__(
        self, files: list[TokenFile], context: int, seed: int | None, shuffle_documents: bool
    ):
        self.context = context
        self.streams = [Stream(file, seed, shuffle_documents) for file in files]
        self.counts = [-(-len(file) // context) for file in files]
        """Rows of each file."""
        self.total = sum(self.counts)
        self._ends = np.cumsum(self.counts)

    def __len__(self) -> int:
        return self.total * MAX_EPOCHS

    def __getitem__(self, number: int) -> LanguageRow:
        epoch, row = divmod(number, self.total)
        which = int(np.searchsorted(self._ends, row, side="right"))
        stream = self.streams[which]
        row -= int(self._ends[which]) - self.counts[which]
        start = row * self.context
        token, num_bytes = stream.read(epoch, start - 1, self.context + 1)
        predicted = min(self.context, len(stream.file) - start)
        target = token[1:].copy()
        target[predicted:] = IGNORED
        opened = np.cumsum(token[:-1] == stream.file.end)
        return LanguageRow(
            token=token[:-1],
            target=target,
            document=opened - opened[0],
            num_bytes=int(num_bytes[1 : predicted + 1].sum()),
            language=stream.file.language,
            key=f"{stream.file.path}:{row}",
        )


class EpochOrder:
    """An order whose numbers say the epoch too, as `PackedRows` has them."""

    def __init__(self, order: Order):
        self.order = order
        self.total = order.total

    def sample(self, epoch: int, place: int) -> int:
        return epoch * self.total + self.order.sample(epoch, place)


class LanguageCollate:
    """Stack rows of texts in any of `languages`."""

    def __init__(self, languages: tuple[str, ...]):
        self.languages = languages

    def __call__(self, rows: list[LanguageRow]) -> LanguageBatch:
        return LanguageBatch(
            token=torch.from_numpy(np.stack([row.token for row in rows])),
            target=torch.from_numpy(np.stack([row.target for row in rows])),
            document=torch.from_numpy(np.stack([row.document for row in rows])),
            num_bytes=torch.tensor([row.num_bytes for row in rows]),
            language=torch.tensor([self.languages.index(row.language) for row in rows]),
            languages=self.languages,
            valid=torch.tensor([row.valid for row in rows]),
            key=[row.key for row in rows],
        )
