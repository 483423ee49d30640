"""What the tokens of a vocabulary spell, and which of them belong to one word."""

import unicodedata
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from mhmoe_mm.inputs.tokenization import Tokenizer

Ids = Int[np.ndarray, "batch seq"]

SPECIAL, MASKED, WHOLE_WORD, WORD_START, WORD_INSIDE, NUMBER, PUNCTUATION, BLANK = range(8)
TOKEN_CLASSES = (
    "special",
    "masked",
    "whole word",
    "start of a word",
    "inside a word",
    "number",
    "punctuation",
    "blank",
)
"""What a token of a text is."""
_LETTER, _DIGIT, _MARK, _SPACE, _NONE = range(5)


class Spelling:
    """What each id spells, and how texts of ids fall into words.

    A word is a run of letters or of digits: a blank in front begins another one, and every mark of
    punctuation is one of its own. Vocabularies that keep blanks in their tokens (byte-level ones,
    SentencePiece's) and those of single characters are read alike.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.spelled = tokenizer.spelled
        """By id, bytes of UTF-8; empty for special tokens and ids without a token."""
        self.special_names = tokenizer.special_names
        self.eos = tokenizer.eos
        """The id that ends a text."""
        self._mask = tokenizer.mask
        special = np.array([i in tokenizer.specials for i in range(len(self.spelled))])
        self._special = special
        self._spaced = np.array([piece[:1] == b" " for piece in self.spelled])
        kinds = [_kinds(piece) for piece in self.spelled]
        self._first = np.array([first for first, _ in kinds])
        self._last = np.array([last for _, last in kinds])

    def words(self, ids: Ids) -> Int[np.ndarray, "batch seq"]:
        """For each token the number of its word in its row, -1 at special tokens and blanks."""
        first, last = self._first[ids], self._last[ids]
        before = np.roll(last, 1, axis=1)
        before[:, 0] = _NONE
        begins = self._spaced[ids] | (first != before) | (first == _MARK) | self._special[ids]
        outside = self._special[ids] | (first == _SPACE) | (first == _NONE)
        number = np.cumsum(begins & ~outside, axis=1) - 1
        return np.where(outside, -1, number).astype(np.int32)

    def classes(self, ids: Ids, words: Int[np.ndarray, "batch seq"]) -> Int[np.ndarray, "_ _"]:
        """For each token one of `TOKEN_CLASSES`, by position in it."""
        with_before = (words[:, 1:] == words[:, :-1]) & (words[:, 1:] >= 0)
        column: Bool[np.ndarray, "batch 1"] = np.zeros((len(ids), 1), dtype=bool)
        goes_on = np.concatenate([column, with_before], axis=1)
        continued = np.concatenate([with_before, column], axis=1)
        result = np.full(ids.shape, WHOLE_WORD)
        result[continued] = WORD_START
        result[goes_on] = WORD_INSIDE
        first = self._first[ids]
        result[first == _DIGIT] = NUMBER
        result[first == _MARK] = PUNCTUATION
        result[(first == _SPACE) | (first == _NONE)] = BLANK
        result[self._special[ids]] = SPECIAL
        result[ids == self._mask] = MASKED
        return result.astype(np.int8)

    def text(self, ids: list[int]) -> str:
        """What these tokens spell together, a blank at either end left out."""
        return b"".join(self.spelled[i] for i in ids).decode("utf-8", errors="replace").strip()

    def piece(self, token: int) -> str:
        """One token as it may be shown: its letters, or a special token's name."""
        if token in self.special_names:
            return self.special_names[token]
        return self.spelled[token].decode("utf-8", errors="replace")


def spelling_of(data_module: Any) -> Spelling | None:
    """Of the texts of a data module; None where it has none, or no tokenizer."""
    if not getattr(data_module, "tokenizer_path", None):
        return None
    return Spelling(data_module.tokenizer)


def _kinds(piece: bytes) -> tuple[int, int]:
    """What the first and the last letter of a token are; half a letter counts as one."""
    text = piece.decode("utf-8", errors="replace")
    if not text:
        return _NONE, _NONE
    stripped = text.strip()
    if not stripped:
        return _SPACE, _SPACE
    return _kind(stripped[0]), _kind(stripped[-1]) if text == text.rstrip() else _SPACE


def _kind(letter: str) -> int:
    if letter == "\ufffd":
        return _LETTER
    category = unicodedata.category(letter)[0]
    return {"L": _LETTER, "M": _LETTER, "N": _DIGIT}.get(category, _MARK)
