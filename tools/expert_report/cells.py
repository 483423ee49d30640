"""Every token in a cell: the combination of all the kinds that it is of.

Counting once by cell and adding cells up afterwards is much cheaper than counting once for each way
to tell tokens apart.
"""

from typing import NamedTuple

import numpy as np

from mhmoe_mm.callbacks.routing_tokens import CLASSES, MODALITIES, RoutingChunk

SAMPLE, TOKEN = "sample", "token"
DIMENSIONS = {
    "modality": TOKEN,
    "language": SAMPLE,
    "task": SAMPLE,
    "answer type": SAMPLE,
    "token class": TOKEN,
}
"""The ways to tell tokens apart, and whether all tokens of a sample are of one kind."""
GROUPS = 8
"""Random groups of samples, and of tokens."""
_PER_SAMPLE = len(MODALITIES) * len(CLASSES)


class Cells(NamedTuple):
    """Where the tokens of a chunk belong."""

    cell: np.ndarray
    """int64 (tokens)."""
    group: np.ndarray
    """int64 (tokens): a random group of its sample times `GROUPS` plus one of its own."""


class CellIndex:
    """Numbers cells as they come up."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[str, str, str], int] = {}
        self._random = np.random.default_rng(0)

    @property
    def size(self) -> int:
        """Cells so far; known ones keep their numbers."""
        return len(self._kinds) * _PER_SAMPLE

    def of(self, chunk: RoutingChunk) -> Cells:
        """The cells of a chunk's tokens."""
        about = zip(
            chunk.samples.language, chunk.samples.task, chunk.samples.answer_type, strict=True
        )
        kind = np.array([self._kinds.setdefault(each, len(self._kinds)) for each in about])
        token = chunk.tokens
        inner = token.modality.astype(np.int64) * len(CLASSES) + token.token_class
        sample_group = self._random.integers(GROUPS, size=len(kind))
        own = self._random.integers(GROUPS, size=len(inner))
        cell = kind[token.sample].astype(np.int64) * _PER_SAMPLE + inner
        return Cells(cell, sample_group[token.sample] * GROUPS + own)

    def kinds(self, dimension: str) -> list[str]:
        """For each cell its kind in a dimension, empty where it has none."""
        cells = []
        for language, task, answer in self._kinds:
            for modality in MODALITIES:
                for token_class in CLASSES:
                    known = {
                        "modality": modality,
                        "language": language if modality == "text" else "",
                        "task": task,
                        "answer type": answer,
                        "token class": token_class,
                    }
                    cells.append(known[dimension])
        return cells
