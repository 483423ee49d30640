"""BLEU-1 to BLEU-4 of a corpus with several references (Papineni et al. 2002)."""

import math
from collections import Counter
from collections.abc import Sequence

MAX_ORDER = 4


def ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each run of `order` words occurs."""
    return Counter(zip(*(words[start:] for start in range(order)), strict=False))


def bleu(captions: Sequence[list[str]], references: Sequence[list[list[str]]]) -> list[float]:
    """BLEU-1 to BLEU-4, from 0 to 1, of captions (as words) against the references of each.

    Counts are summed over the corpus before anything is divided. The brevity penalty takes for each
    caption the reference closest in length, the shorter one where two are as close. Without
    smoothing: where no run of n words matches, BLEU-n is 0.
    """
    matched, produced = [0] * MAX_ORDER, [0] * MAX_ORDER
    caption_length = reference_length = 0
    for caption, known in zip(captions, references, strict=True):
        caption_length += len(caption)
        reference_length += min((abs(len(r) - len(caption)), len(r)) for r in known)[1]
        for n in range(MAX_ORDER):
            most: Counter[tuple[str, ...]] = Counter()
            for reference in known:
                most |= ngrams(reference, n + 1)
            own = ngrams(caption, n + 1)
            matched[n] += (own & most).total()
            produced[n] += own.total()
    if not caption_length:
        return [0.0] * MAX_ORDER
    brevity = math.exp(min(0.0, 1 - reference_length / caption_length))
    scores, log_sum = [], 0.0
    for n in range(MAX_ORDER):
        log_sum += math.log(matched[n] / produced[n]) if matched[n] else -math.inf
        scores.append(brevity * math.exp(log_sum / (n + 1)))
    return scores
