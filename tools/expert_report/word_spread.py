"""Words: how many experts read them, where each head sends them, which experts read which."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from mhmoe_mm.callbacks.routing_tokens import RoutingChunk
from mhmoe_mm.inputs.spelling import WHOLE_WORD, WORD_START
from mhmoe_mm.moe.sparse_layers import Description
from tools.expert_report.contents import DiversityGroup, Expert, Route, Word, WordCount, Words
from tools.expert_report.diversity import random_distinct_diversity, random_diversity

SHOWN = 30
"""Words of a list."""
TYPICAL = 6
"""Words of an expert."""
BINS = 24
MOST_WORDS = 200_000
FOLLOWED_BYTES = 64 << 20
"""Memory of the words that are followed layer by layer and head by head."""


class Occurrences(NamedTuple):
    """The words of a chunk."""

    word: np.ndarray
    """int64 (occurrences), numbers of words."""
    first: np.ndarray
    """int64 (occurrences), the place of its first token among `token`."""
    token: np.ndarray
    """int64 (pieces), tokens of the chunk."""
    of: np.ndarray
    """int64 (pieces), the occurrence that a token belongs to."""


class WordSpread:
    """Collects words over chunks.

    A word counts where all its tokens were read as they were written. Words of the given list are
    followed closely, and of the others those that come first, as far as memory allows.

    Args:
        pieces: what each id of the vocabulary spells.
        layers: of the network.
        listed: words to be compared with the rest, in any case.
    """

    def __init__(
        self, pieces: Sequence[str], layers: Sequence[Description], listed: Collection[str] = ()
    ):
        self.pieces, self.layers = pieces, list(layers)
        self.listed = {word.casefold() for word in listed}
        self.given = list(listed)
        self.names: list[tuple[str, str]] = []
        """(word, language) by number."""
        self._number: dict[tuple[str, str], int] = {}
        self._by_ids: dict[tuple[str, bytes], int] = {}
        self._sum = np.zeros(0)
        self._square = np.zeros(0)
        self._count = np.zeros(0, dtype=np.int64)
        self._num_pieces = np.zeros(0, dtype=np.int64)
        self._histogram: dict[bool, np.ndarray] = {}
        self.overflow = 0
        """Occurrences of words beyond `MOST_WORDS`."""
        cell = sum(layer.num_heads * (layer.num_experts + 1) for layer in layers) * 4
        self._room = max(FOLLOWED_BYTES // cell, 16)
        self._followed: dict[int, int] = {}
        self._routes = {
            layer.name: np.zeros((self._room, layer.num_heads, layer.num_experts + 1), np.int32)
            for layer in layers
        }
        self._choices: dict[str, int] = {}

    def add(self, chunk: RoutingChunk, diversity: np.ndarray) -> None:
        """Count one forward; `diversity` (tokens) as `mean_diversity` gives it."""
        for name, routing in chunk.layers.items():
            self._choices[name] = max(self._choices.get(name, 0), routing.expert.shape[2])
        found = self._occurrences(chunk)
        if found is None:
            return
        per_piece = diversity[found.token].astype(np.float64)
        sizes = np.bincount(found.of, minlength=len(found.word))
        mean = np.bincount(found.of, per_piece, minlength=len(found.word)) / sizes
        known = np.isfinite(mean)
        word, mean, sizes = found.word[known], mean[known], sizes[known]
        self._grow()
        num = len(self.names)
        self._sum += np.bincount(word, mean, minlength=num)
        self._square += np.bincount(word, mean**2, minlength=num)
        self._count += np.bincount(word, minlength=num)
        self._num_pieces += np.bincount(word, sizes, minlength=num).astype(np.int64)
        self._add_histogram(word, mean)
        self._follow(chunk, found)

    def _occurrences(self, chunk: RoutingChunk) -> Occurrences | None:
        token = chunk.tokens
        text = np.flatnonzero(token.word >= 0)
        if not len(text):
            return None
        sample, number = token.sample[text], token.word[text]
        begins = np.ones(len(text), dtype=bool)
        begins[1:] = (sample[1:] != sample[:-1]) | (number[1:] != number[:-1])
        start = np.flatnonzero(begins)
        clean = np.minimum.reduceat(token.clean[text], start)
        letters = np.isin(token.token_class[text][start], (WHOLE_WORD, WORD_START))
        ends = np.append(start[1:], len(text))
        ids = token.vocabulary_id[text]
        word = np.full(len(start), -1, dtype=np.int64)
        languages = chunk.samples.language
        for place in np.flatnonzero(clean & letters).tolist():
            key = ids[start[place] : ends[place]].tobytes()
            language = languages[sample[start[place]]]
            known = self._by_ids.get((language, key))
            word[place] = self._new(language, key) if known is None else known
        of = np.cumsum(begins) - 1
        there = word >= 0
        kept = there[of]
        place = np.cumsum(there) - 1
        return Occurrences(word[there], np.flatnonzero(begins[kept]), text[kept], place[of[kept]])

    def _new(self, language: str, key: bytes) -> int:
        text = "".join(self.pieces[i] for i in np.frombuffer(key, np.int32)).strip()
        name = (text, language)
        if name not in self._number:
            if len(self.names) >= MOST_WORDS:
                self.overflow += 1
                return -1
            number = self._number[name] = len(self.names)
            self.names.append(name)
            room = self._room - (0 if text.casefold() in self.listed else len(self.listed))
            if len(self._followed) < max(room, self._room // 2):
                self._followed[number] = len(self._followed)
        self._by_ids[language, key] = self._number[name]
        return self._number[name]

    def _grow(self) -> None:
        more = len(self.names) - len(self._sum)
        for name in ("_sum", "_square", "_count", "_num_pieces"):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old, np.zeros(more, old.dtype)]))

    def _add_histogram(self, word: np.ndarray, mean: np.ndarray) -> None:
        listed = np.array([name.casefold() in self.listed for name, _ in self.names])[word]
        for which in (True, False):
            fine = np.rint(mean[listed == which] * 1024).astype(np.int64)
            old = self._histogram.get(which, np.zeros(0, dtype=np.int64))
            found = np.bincount(fine, minlength=len(old))
            self._histogram[which] = found + _padded(old, len(found))

    def _follow(self, chunk: RoutingChunk, found: Occurrences) -> None:
        place = np.full(len(self.names), -1, dtype=np.int64)
        place[list(self._followed)] = list(self._followed.values())
        of_token = np.full(len(chunk.tokens.sample), -1, dtype=np.int64)
        of_token[found.token] = place[found.word[found.of]]
        for name, routing in chunk.layers.items():
            own = of_token[routing.rows]
            chosen = own >= 0
            table = self._routes[name]
            heads, width = table.shape[1:]
            base = own[chosen][:, None] * (heads * width) + np.arange(heads) * width + 1
            flat = (base + routing.expert[chosen][:, :, 0]).ravel()
            np.add.at(table.reshape(-1), flat, 1)

    def result(self, least: int = 5) -> Words | None:
        """What was collected, routes over the layers that were used; None without any word."""
        if not self._count.sum():
            return None
        mean = self._sum / np.maximum(self._count, 1)
        is_listed = np.array([name.casefold() in self.listed for name, _ in self.names])
        common = np.flatnonzero((self._count >= least) & (self._count > 0))
        count = self._count
        spread = common[np.lexsort((-count[common], -mean[common]))]
        least_spread = common[np.lexsort((-count[common], mean[common]))]
        by_count = common[np.argsort(-count[common], kind="stable")]
        listed = np.flatnonzero(is_listed & (self._count > 0))
        there = {self.names[i][0].casefold() for i in listed}
        groups = [("all words", np.ones(len(mean), dtype=bool), (True, False))]
        if self.given:
            groups += [("listed", is_listed, (True,)), ("rest", ~is_listed, (False,))]
        edges = self._edges()
        return Words(
            edges=tuple(edges.tolist()),
            groups=tuple(self._group(*group, edges) for group in groups),
            random=self._chance(False),
            random_distinct=self._chance(True),
            least_occurrences=least,
            most=self._words(spread[:SHOWN], mean),
            least=self._words(least_spread[:SHOWN], mean),
            frequent=self._words(by_count[:SHOWN], mean),
            listed=self._words(listed[np.argsort(-mean[listed], kind="stable")], mean),
            missing=tuple(word for word in self.given if word.casefold() not in there),
        )

    def _passed(self) -> list[Description]:
        """The layers that words pass."""
        return [layer for layer in self.layers if self._routes[layer.name].any()]

    def _chance(self, distinct: bool) -> float:
        """What random routing would give, mean over layers."""
        shapes = [
            (lay.num_experts, lay.num_heads, self._choices[lay.name]) for lay in self._passed()
        ]
        if distinct:
            return float(np.mean([random_distinct_diversity(*shape) for shape in shapes]))
        return float(np.mean([random_diversity(e, heads * k) for e, heads, k in shapes]))

    def _edges(self) -> np.ndarray:
        reach = [
            min(layer.num_experts, layer.num_heads * self._choices[layer.name])
            for layer in self._passed()
        ]
        most = max(reach, default=1)
        if most == 1:
            return np.array([0.5, 1.5])
        return np.linspace(1 - (most - 1) / (2 * BINS), most + (most - 1) / (2 * BINS), BINS + 2)

    def _group(
        self, name: str, chosen: np.ndarray, which: tuple[bool, ...], edges: np.ndarray
    ) -> DiversityGroup:
        count, total = int(self._count[chosen].sum()), float(self._sum[chosen].sum())
        mean = total / max(count, 1)
        variance = float(self._square[chosen].sum()) / max(count, 1) - mean**2
        fine = [self._histogram[listed] for listed in which if listed in self._histogram]
        width = max(len(part) for part in fine)
        whole = np.sum([_padded(part, width) for part in fine], axis=0)
        density, _ = np.histogram(np.arange(width) / 1024, edges, weights=whole)
        error = (max(variance, 0) / (count - 1)) ** 0.5 if count > 1 else None
        return DiversityGroup(
            name, count, mean, error, tuple((density / max(density.sum(), 1)).tolist())
        )

    def _words(self, numbers: np.ndarray, mean: np.ndarray) -> tuple[Word, ...]:
        return tuple(
            Word(
                word=self.names[i][0],
                language=self.names[i][1],
                occurrences=int(self._count[i]),
                pieces=float(self._num_pieces[i] / self._count[i]),
                diversity=float(mean[i]),
                listed=self.names[i][0].casefold() in self.listed,
                routes=self._routes_of(i),
            )
            for i in numbers.tolist()
        )

    def _routes_of(self, number: int) -> tuple[tuple[Route, ...], ...]:
        place = self._followed.get(number)
        if place is None:
            return ()
        routes = []
        for layer in self.layers:
            if layer.name not in self._choices:
                continue
            table = self._routes[layer.name][place][:, 1:]
            total = table.sum(axis=1)
            routes.append(
                tuple(
                    Route(int(row.argmax()), float(row.max() / n))
                    for row, n in zip(table, total, strict=True)
                    if n
                )
            )
        return tuple(routes)

    def experts(self, least: int = 5) -> tuple[Expert, ...]:
        """What each expert reads, by first choices of any head."""
        number = np.array(list(self._followed), dtype=np.int64)
        if not len(number):
            return ()
        place = np.array(list(self._followed.values()))
        enough = self._count[number] >= least
        number, place = number[enough], place[enough]
        found = []
        for layer in self.layers:
            table = self._routes[layer.name][place][:, :, 1:].sum(axis=1).astype(np.float64)
            total = table.sum()
            if not total:
                continue
            expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / total
            lift = np.divide(table, expected, out=np.ones_like(table), where=expected > 0)
            score = table * np.log(np.maximum(lift, 1))
            for expert in range(layer.num_experts):
                best = np.argsort(-score[:, expert], kind="stable")[:TYPICAL]
                words = tuple(
                    WordCount(
                        self.names[number[i]][0], int(table[i, expert]), float(lift[i, expert])
                    )
                    for i in best.tolist()
                    if score[i, expert] > 0
                )
                if words:
                    found.append(Expert(layer.name, expert, words))
        return tuple(found)


def read_word_list(text: str) -> list[str]:
    """The words of a file: one a line, `#` begins a comment; a JSON of the papers' prompt would be
    turned into that first.
    """
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line))


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([array, np.zeros(max(length - len(array), 0), array.dtype)])
