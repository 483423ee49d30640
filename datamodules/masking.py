"""Which patches and which tokens are hidden.

Images are masked in blocks (BEiT, https://arxiv.org/abs/2106.08254, Algorithm 1): a rectangle is
easier to miss than to fill from its neighbours. The count is exact, so that shapes are fixed. Texts
are corrupted as in BERT: of the chosen tokens most become `<mask>`, some another token, some stay.
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.inputs.tokenization import Tokenizer

ATTEMPTS = 10


@dataclass(frozen=True)
class Masking:
    """How much is hidden, and how.

    Args:
        image_share: share of the patches of an image.
        min_block: patches in the smallest block; None scales BEiT's 16 of 196 to the grid.
        min_aspect: blocks are between this and its inverse as high as wide.
        text_share: share of the tokens of a text on its own.
        pair_text_share: share of the tokens of a text with its image.
        mask_share: of the chosen tokens, the share that becomes `<mask>`.
        random_share: of the chosen tokens, the share that becomes another token; the rest stays.
        whole_word: choose words rather than tokens.
    """

    image_share: float = 0.4
    min_block: int | None = None
    min_aspect: float = 0.3
    text_share: float = 0.15
    pair_text_share: float = 0.5
    mask_share: float = 0.8
    random_share: float = 0.1
    whole_word: bool = False

    def __post_init__(self):
        for name in ("image_share", "text_share", "pair_text_share", "min_aspect"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"masking.{name} must lie in (0, 1], got {getattr(self, name)}.")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                "masking.mask_share and masking.random_share must not be negative and add up to at "
                f"most 1, got {self.mask_share} and {self.random_share}."
            )
        if self.min_block is not None and self.min_block < 1:
            raise ValueError(f"masking.min_block must be at least 1, got {self.min_block}.")


class BlockMask:
    """Draws masks over a grid of patches with exactly `num_masked` patches hidden."""

    def __init__(self, height: int, width: int, masking: Masking):
        self.height = height
        self.width = width
        patches = height * width
        self.num_masked = min(patches, max(1, int(masking.image_share * patches)))
        scaled = round(16 * patches / 196)
        self.min_block = max(1, scaled if masking.min_block is None else masking.min_block)
        self.min_aspect = masking.min_aspect

    def __call__(self, choice: random.Random) -> Tensor:
        """bool (height * width), row-major, true where the patch is hidden."""
        rows = [0] * self.height  # the hidden patches of each row of the grid as bits
        count = 0
        while count < self.num_masked:
            added = self._add_block(rows, self.num_masked - count, choice)
            if added == 0:
                break
            count += added
        flat = [row >> x & 1 for row in rows for x in range(self.width)]
        if count < self.num_masked:
            # What no block could reach exactly is filled up by single patches.
            free = [patch for patch, hidden in enumerate(flat) if not hidden]
            for patch in choice.sample(free, self.num_masked - count):
                flat[patch] = 1
        return torch.frombuffer(bytearray(flat), dtype=torch.bool)

    def _add_block(self, rows: list[int], room: int, choice: random.Random) -> int:
        """Hide a block with at most `room` new patches; how many these are, 0 if none fits."""
        spread = -math.log(self.min_aspect)
        for _ in range(ATTEMPTS):
            area = choice.uniform(min(self.min_block, room), room)
            aspect = math.exp(choice.uniform(-spread, spread))
            high = max(1, round(math.sqrt(area * aspect)))
            wide = max(1, round(math.sqrt(area / aspect)))
            if high >= self.height or wide >= self.width:
                continue
            top = choice.randint(0, self.height - high)
            block = ((1 << wide) - 1) << choice.randint(0, self.width - wide)
            new = sum((block & ~row).bit_count() for row in rows[top : top + high])
            if 0 < new <= room:
                for y in range(top, top + high):
                    rows[y] |= block
                return new
        return 0


class TextMask:
    """Corrupts `share` of a text's tokens, at least one, never `<s>` or `</s>`."""

    def __init__(self, tokenizer: Tokenizer, share: float, masking: Masking):
        self.tokenizer = tokenizer
        self.share = share
        self.masking = masking

    def __call__(
        self, ids: list[int], words: list[int], choice: random.Random
    ) -> tuple[list[int], list[int]]:
        """(corrupted ids, targets): the original id where it is to be predicted, else `IGNORED`."""
        corrupted, target = list(ids), [IGNORED] * len(ids)
        for at in self._chosen(ids, words, choice):
            target[at] = ids[at]
            corrupted[at] = disguised(ids[at], self.tokenizer, self.masking, choice)
        return corrupted, target

    def _chosen(self, ids: list[int], words: list[int], choice: random.Random) -> list[int]:
        free = [at for at, token in enumerate(ids) if token not in self.tokenizer.specials]
        if not free:
            return []
        wanted = max(1, round(self.share * len(free)))
        if not self.masking.whole_word:
            return choice.sample(free, wanted)
        groups: dict[int, list[int]] = {}
        for at in free:
            groups.setdefault(words[at], []).append(at)
        shuffled = choice.sample(list(groups.values()), len(groups))
        chosen: list[int] = []
        for group in shuffled:
            if not chosen or len(chosen) + len(group) <= wanted:
                chosen += group
        return chosen


class CaptionMask:
    """Corrupts `share` of a caption's tokens to learn to write it: `</s>` too, never `<s>`.

    Of n tokens with `<s>` and `</s>`, round(n * share) are chosen, at least one and at most n - 1
    (BEiT-3's captioning).
    """

    def __init__(self, tokenizer: Tokenizer, share: float, masking: Masking):
        self.tokenizer = tokenizer
        self.share = share
        self.masking = masking

    def __call__(self, ids: list[int], choice: random.Random) -> tuple[list[int], list[int]]:
        """(corrupted ids, targets): the original id where it is to be predicted, else `IGNORED`."""
        corrupted, target = list(ids), [IGNORED] * len(ids)
        wanted = max(1, min(len(ids) - 1, int(len(ids) * self.share + 0.5)))
        for at in choice.sample(range(1, len(ids)), wanted):
            target[at] = ids[at]
            corrupted[at] = disguised(ids[at], self.tokenizer, self.masking, choice)
        return corrupted, target


def disguised(token: int, tokenizer: Tokenizer, masking: Masking, choice: random.Random) -> int:
    """What stands in the place of a chosen token: `<mask>`, another token, or itself."""
    fate = choice.random()
    if fate < masking.mask_share:
        return tokenizer.mask
    if fate < masking.mask_share + masking.random_share:
        return choice.choice(tokenizer.ordinary)
    return token
