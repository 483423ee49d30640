"""Texts to a batch of ids, and what a checkpoint remembers of how."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhmoe_mm.inputs.tokenization import Tokenizer

LENGTH_STEP = 8
"""Texts are padded to a multiple of this, so that few different shapes occur."""


class Texts(NamedTuple):
    """How texts are read."""

    tokenizer: Tokenizer
    max_tokens: int
    """Longest text, `<s>` and `</s>` included; more is cut off."""

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids, whether it is padding), (batch seq) both."""
        rows = [self.tokenizer.encode(text, self.max_tokens) for text in texts]
        return stack_tokens(rows, self.tokenizer.pad, self.max_tokens)

    def plain(self) -> dict[str, Any]:
        """The same as plain values, for a checkpoint: it is then of use without other files."""
        return {
            "tokenizer": self.tokenizer.content,
            "sha256": self.tokenizer.sha256,
            "max_tokens": self.max_tokens,
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Texts":
        """From `plain`; ValueError where the tokenizer is not the one that was kept."""
        content = plain["tokenizer"]
        if hashlib.sha256(content.encode()).hexdigest() != plain["sha256"]:
            raise ValueError("The tokenizer does not have the sha256 that was kept with it.")
        return cls(Tokenizer(content), plain["max_tokens"])


def stack_tokens(rows: list[list[int]], fill: int, max_tokens: int) -> tuple[Tensor, Tensor]:
    """(ids, whether it is padding), (batch seq) both: filled up with `fill` to the longest row in
    steps of `LENGTH_STEP`, at most `max_tokens`.
    """
    longest = max(len(row) for row in rows)
    length = min(max_tokens, -(-longest // LENGTH_STEP) * LENGTH_STEP)
    size = torch.tensor([len(row) for row in rows])
    ids = torch.tensor([row + [fill] * (length - len(row)) for row in rows])
    return ids, torch.arange(length) >= size[:, None]
