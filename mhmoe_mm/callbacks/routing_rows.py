"""Single rows of recorded routing, a sentence or an image each, to be shown to people."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from mhmoe_mm.callbacks.routing_tokens import MODALITIES, RoutingChunk, Tokens

T = TypeVar("T")
IMAGE, TEXT = range(len(MODALITIES))
_BITS = 64


class RoutedRow(NamedTuple):
    """One row of a forward, or a part of it."""

    key: str
    task: str
    """What was asked, as in `Samples`."""
    language: str
    answer_type: str
    tokens: Tokens
    """Its real tokens."""
    grid: tuple[int, int]
    """Rows and columns of patches, (0, 0) without an image."""
    pixel: np.ndarray | None
    """uint8 (3 height width), None where it was not kept or there is no image."""
    passed: dict[str, np.ndarray]
    """By layer: int (passed), places of the tokens that passed it, in order."""
    expert: dict[str, np.ndarray]
    """By layer: int (passed heads choices), -1 for none."""
    weight: dict[str, np.ndarray]
    """By layer: float16 (passed heads choices); empty where weights were not read."""

    def part(self, modality: int) -> np.ndarray:
        """int (tokens), places of its words, or of its patches without the image as a whole."""
        if modality == TEXT:
            return np.flatnonzero(self.tokens.modality == TEXT)
        return np.flatnonzero(self.tokens.patch >= 0)

    def experts_of(self, place: np.ndarray, layer: str) -> np.ndarray | None:
        """(place heads choices) experts of these tokens in a layer; None where one did not pass."""
        at = self._at(place, layer)
        return None if at is None else self.expert[layer][at]

    def weights_of(self, place: np.ndarray, layer: str) -> np.ndarray | None:
        """(place heads choices) likewise the experts' weights."""
        at = self._at(place, layer)
        return None if at is None or layer not in self.weight else self.weight[layer][at]

    def _at(self, place: np.ndarray, layer: str) -> np.ndarray | None:
        passed = self.passed.get(layer)
        if passed is None or not len(place):
            return None
        at = np.searchsorted(passed, place)
        if at[-1] >= len(passed) or (passed[at] != place).any():
            return None
        return at

    def diversity(self, place: np.ndarray, experts: dict[str, int]) -> np.ndarray | None:
        """float (place) different experts of these tokens, mean over the layers that they pass;
        None where they pass none. `experts` gives every layer's number of them.
        """
        each = [
            different(found, number)
            for layer, number in experts.items()
            if (found := self.experts_of(place, layer)) is not None
        ]
        return np.mean(each, axis=0) if each else None


def row_of(chunk: RoutingChunk, row: int, places: slice = slice(None)) -> RoutedRow:
    """A row of a forward; with `places`, that part of its tokens."""
    whole = slice(*np.searchsorted(chunk.tokens.sample, [row, row + 1]).tolist())
    first, end, _ = places.indices(whole.stop - whole.start)
    own = slice(whole.start + first, whole.start + end)
    bounds = {
        name: slice(*np.searchsorted(routing.rows, [own.start, own.stop]).tolist())
        for name, routing in chunk.layers.items()
    }
    samples = chunk.samples
    return RoutedRow(
        samples.key[row],
        samples.task[row],
        samples.language[row],
        samples.answer_type[row],
        Tokens(*(column[own] for column in chunk.tokens)),
        chunk.grid,
        chunk.pixel.get(row),
        {name: chunk.layers[name].rows[part] - own.start for name, part in bounds.items()},
        {name: chunk.layers[name].expert[part] for name, part in bounds.items()},
        {
            name: weight[part]
            for name, part in bounds.items()
            if (weight := chunk.layers[name].weight) is not None
        },
    )


def different(expert: np.ndarray, num_experts: int) -> np.ndarray:
    """uint16 (rows): different experts among those of a row, its assign-diversity.

    Source: https://arxiv.org/abs/2404.15045, figures 7, 8 and 10.

    Args:
        expert: int (rows heads choices), -1 for none.
    """
    flat = expert.reshape(len(expert), -1)
    total = np.zeros(len(flat), dtype=np.uint16)
    for first in range(0, num_experts, _BITS):
        # Bit e of a word stands for expert first + e; -1 takes the last entry, which is no bit.
        bit = np.zeros(num_experts + 1, dtype=np.uint64)
        own = np.arange(first, min(first + _BITS, num_experts))
        bit[own] = np.uint64(1) << (own - first).astype(np.uint64)
        seen = np.zeros(len(flat), dtype=np.uint64)
        for column in range(flat.shape[1]):
            seen |= bit[flat[:, column]]
        total += np.bitwise_count(seen)
    return total


def whole_text(ids: Sequence[int], end: int | None) -> slice:
    """Where a text lies in a row of a stream: one with both its ends, or else the first that is
    longer than three tokens, or else the row. `end` is the id that ends a text.
    """
    begins = [0] + [i + 1 for i, one in enumerate(ids) if one == end]
    ends = [*begins[1:], len(ids)]
    long = [pair for pair in zip(begins, ends, strict=True) if pair[1] - pair[0] > 3]
    inner = [pair for pair in long if pair[0] > 0 and pair[1] < len(ids)]
    return slice(*(inner or long or [(0, len(ids))])[0])


class Turns(Generic[T]):
    """A few examples of every kind, in turn.

    Args:
        most: of one kind.
    """

    def __init__(self, most: int):
        self.most = most
        self._found: dict[Hashable, list[T]] = {}
        self._keys: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._found.values()))

    def wants(self, kind: Hashable, key: Hashable) -> bool:
        """Whether there is room for one more of that kind, and none with that key."""
        return len(self._found.get(kind, ())) < self.most and not self._keys[key]

    def take(self, one: T, kind: Hashable, key: Hashable) -> None:
        """Keep it."""
        self._found.setdefault(kind, []).append(one)
        self._keys[key] += 1

    def in_turn(self) -> list[T]:
        """The first of every kind, then the second of every kind, and so on."""
        kinds = self._found.values()
        longest = max(map(len, kinds), default=0)
        return [turn[i] for i in range(longest) for turn in kinds if i < len(turn)]


def take_rows(
    turns: Turns[RoutedRow],
    chunk: RoutingChunk,
    modality: int,
    end: int | None,
    room: int | None = None,
) -> None:
    """Take the rows of a forward that `turns` want: those with a text, or whose image was kept.

    Args:
        turns: by task, language and type of answer; each key once.
        chunk: the forward.
        modality: of what is shown, `IMAGE` or `TEXT`.
        end: the id that ends a text; of a row that is all text, one text is taken.
        room: rows that `turns` may hold; None: no limit.
    """
    rows = chunk.pixel
    if modality == TEXT:
        rows = range(len(chunk.samples.key) if (chunk.tokens.modality == TEXT).any() else 0)
    samples = chunk.samples
    for number in rows:
        if room is not None and len(turns) >= room:
            return
        kind = (samples.task[number], samples.language[number], samples.answer_type[number])
        if not turns.wants(kind, samples.key[number]):
            continue
        row = row_of(chunk, number)
        if modality == TEXT and not len(row.part(IMAGE)):
            row = row_of(chunk, number, whole_text(row.tokens.vocabulary_id.tolist(), end))
        turns.take(row, kind, samples.key[number])
