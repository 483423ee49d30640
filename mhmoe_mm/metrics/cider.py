"""CIDEr-D of captions with several references (Vedantam et al. 2015, arXiv 1411.5726).

A caption and a reference are compared as vectors of their runs of 1 to 4 words, in which a run
weighs more the fewer images of the evaluation have it among their references. What an image scores
thus depends on the others: figures of different sets, or of parts of a set, are not comparable.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mhmoe_mm.metrics.bleu import ngrams

ORDERS = (1, 2, 3, 4)
"""Lengths in words of the runs that are compared."""
LENGTH_SIGMA = 6.0
"""Difference in length at which a caption keeps exp(-1/2) of its score."""

Ngram = tuple[str, ...]


class _Weighted(NamedTuple):
    """Weights of the runs of one length in a text, and their Euclidean norm."""

    weight: dict[Ngram, float]
    norm: float


def cider_d(
    captions: Sequence[list[str]], references: Sequence[list[list[str]]]
) -> tuple[float, list[float]]:
    """Mean CIDEr-D, from 0 to 10, and that of each caption.

    Captions are given as words, one per image, with all references of the image; all images of the
    evaluation must be given at once. Where every image has the same runs, and so with one image,
    nothing tells images apart and all scores are 0.
    """
    images_with: Counter[Ngram] = Counter()
    for known in references:
        images_with.update({run for r in known for n in ORDERS for run in ngrams(r, n)})
    rarity = {run: math.log(len(references) / images) for run, images in images_with.items()}
    unseen = math.log(len(references)) if references else 0.0
    scores = []
    for caption, known in zip(captions, references, strict=True):
        own = _vectors(caption, rarity, unseen)
        scores.append(
            math.fsum(_similarity(own, caption, _vectors(r, rarity, unseen), r) for r in known)
            / len(known)
        )
    return math.fsum(scores) / len(scores), scores


def _vectors(words: list[str], rarity: dict[Ngram, float], unseen: float) -> list[_Weighted]:
    vectors = []
    for n in ORDERS:
        counts = ngrams(words, n)
        weight = {run: count * rarity.get(run, unseen) for run, count in counts.items()}
        vectors.append(_Weighted(weight, math.sqrt(math.fsum(w * w for w in weight.values()))))
    return vectors


def _similarity(
    own: list[_Weighted], caption: list[str], other: list[_Weighted], reference: list[str]
) -> float:
    total = 0.0
    for mine, theirs in zip(own, other, strict=True):
        # Clipped, so that repeating a run of the reference gains nothing.
        dot = math.fsum(
            min(weight, theirs.weight[run]) * theirs.weight[run]
            for run, weight in mine.weight.items()
            if run in theirs.weight
        )
        total += dot / (mine.norm * theirs.norm) if dot else 0.0
    # The published program takes as length the number of runs of two words.
    difference = max(0, len(caption) - 1) - max(0, len(reference) - 1)
    return 10 * total / len(ORDERS) * math.exp(-(difference**2) / (2 * LENGTH_SIGMA**2))
