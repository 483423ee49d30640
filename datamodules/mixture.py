"""How often each language is read: in proportion to its size, or more evenly.

With a temperature T a language of n tokens has a share proportional to n^(1/T)
(https://arxiv.org/abs/1901.07291 writes the exponent): at 1 every token is as likely as any other,
and the larger T, the more alike are the languages.
"""

import math
from dataclasses import dataclass

import numpy as np

from datamodules.order import Order, permutation
from datamodules.recent import Recent

BLOCK = 1024
"""Rows within which every language has its exact number of rows: shares are right to 1/1024."""


@dataclass(frozen=True)
class Mixture:
    """The shares of the languages in training.

    Args:
        temperature: 1 in proportion to the tokens there are; larger, more evenly; `.inf`, equally.
        weights: by language, in place of a temperature; only their ratios count.
    """

    temperature: float = 1.0
    weights: dict[str, float] | None = None

    def __post_init__(self):
        if not self.temperature >= 1:
            raise ValueError(f"mixture.temperature must be at least 1, got {self.temperature}.")
        if self.weights is None:
            return
        if self.temperature != 1:
            raise ValueError("mixture.temperature and mixture.weights exclude each other.")
        if not all(0 < weight < math.inf for weight in self.weights.values()):
            raise ValueError(
                f"mixture.weights must be above 0, got {self.weights}; leave a language that is "
                "not to be read out of train.languages."
            )

    @property
    def is_proportional(self) -> bool:
        """Whether an epoch is every row once."""
        return self.weights is None and self.temperature == 1

    def shares(self, tokens: dict[str, int]) -> dict[str, float]:
        """By language its share; `tokens` says how much of each there is."""
        if self.weights is None:
            largest = max(tokens.values())
            weights = {code: (n / largest) ** (1 / self.temperature) for code, n in tokens.items()}
        elif self.weights.keys() != tokens.keys():
            raise ValueError(
                f"mixture.weights are of {' '.join(sorted(self.weights))}, the training texts in "
                f"{' '.join(sorted(tokens))}: give each language its weight."
            )
        else:
            weights = self.weights
        total = math.fsum(weights.values())
        return {code: weights[code] / total for code in tokens}


class MixedOrder:
    """Rows of several languages by their shares; a pure function of the seed and the place.

    Each block of rows holds the same number of each language, in an order of its own. A language
    runs through epochs of its own: all its rows are read before one comes again.

    Args:
        languages: the order of the rows of each; its rows are numbered behind those before it.
        shares: of each, summing to 1.
        seed: of the order within blocks.
        block: rows a block.
    """

    def __init__(self, languages: list[Order], shares: list[float], seed: int, block: int = BLOCK):
        self.languages = languages
        self.total = sum(order.total for order in languages)
        self.seed = seed
        self.block = max(block, len(shares))
        self.quota = quotas(shares, self.block)
        totals = np.array([order.total for order in languages])
        self._starts = (np.cumsum(totals) - totals).tolist()
        self._which = np.repeat(np.arange(len(shares)), self.quota)
        self._blocks: Recent[tuple[np.ndarray, np.ndarray]] = Recent(4)

    def sample(self, epoch: int, place: int) -> int:
        """Number of the row, `own epoch * total + row`, as `PackedRows` has them."""
        block, at = divmod(epoch * self.total + place, self.block)
        which, rank = self._blocks.get(block, lambda: self._arranged(block))
        language = int(which[at])
        order = self.languages[language]
        own = block * int(self.quota[language]) + int(rank[at])
        own_epoch, own_place = divmod(own, order.total)
        row = self._starts[language] + order.sample(own_epoch, own_place)
        return own_epoch * self.total + row

    def _arranged(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """At each place of a block: the language, and how many rows of it came before."""
        which = self._which[permutation(self.block, self.seed, "mixture", block)]
        rank = np.empty_like(which)
        for language, quota in enumerate(self.quota):
            rank[which == language] = np.arange(quota)
        return which, rank


def quotas(shares: list[float], block: int) -> np.ndarray:
    """int64: whole numbers in proportion to `shares` that sum to `block`, each at least 1.

    The largest remainders are rounded up.
    """
    assert block >= len(shares), f"{len(shares)} languages in a block of {block}"
    exact = np.array(shares) * block
    whole = np.maximum(np.floor(exact).astype(np.int64), 1)
    short = block - int(whole.sum())
    if short > 0:
        whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
    for _ in range(-short):  # small languages were given more than their share
        whole[int(np.argmax(whole))] -= 1
    return whole
