"""ROUGE-L of captions with several references (Lin 2004)."""

import math
from collections.abc import Sequence

RECALL_WEIGHT = 1.2
"""How many times more recall weighs than precision, `beta` of the paper, as set for COCO."""


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of words that both contain in order, gaps allowed."""
    best = [0] * (len(b) + 1)  # best[j]: with the first j words of b and what was read of a
    for word in a:
        diagonal = 0
        for j, other in enumerate(b):
            above = best[j + 1]
            best[j + 1] = diagonal + 1 if word == other else max(above, best[j])
            diagonal = above
    return best[-1]


def rouge_l(captions: Sequence[list[str]], references: Sequence[list[list[str]]]) -> float:
    """Mean ROUGE-L, from 0 to 1, of captions (as words) against the references of each.

    As COCO scores captions: the best precision and the best recall, which may come from different
    references, make one figure per caption.
    """
    scores = [caption_rouge_l(c, r) for c, r in zip(captions, references, strict=True)]
    return math.fsum(scores) / len(scores)


def caption_rouge_l(caption: list[str], references: list[list[str]]) -> float:
    """ROUGE-L of one caption."""
    common = [longest_common(caption, reference) for reference in references]
    if not any(common):
        return 0.0
    precision = max(common) / len(caption)
    recall = max(c / len(r) for c, r in zip(common, references, strict=True) if r)
    square = RECALL_WEIGHT**2
    return (1 + square) * precision * recall / (recall + square * precision)
