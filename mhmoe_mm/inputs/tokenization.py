"""Text to token ids, by a `tokenizer.json` of the `tokenizers` library or a SentencePiece model."""

import hashlib
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

SENTENCEPIECE = (".spm", ".model")
"""What names of SentencePiece models end in."""
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BLANK = "\u2581"
"""A blank, as SentencePiece writes it in its tokens."""
BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A single byte, in the vocabularies that have one for each."""
_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
BYTE_OF = {chr(byte): byte for byte in _PLAIN} | {
    chr(0x100 + place): byte for place, byte in enumerate(_OTHERS)
}
"""The byte that a letter of a byte-level tokenizer stands for: printable ones for themselves, the
others for letters from U+0100 on, in order.
"""


class Tokenizer:
    """A trained tokenizer with the five special tokens, which are found by name.

    Special tokens written out in a text are read as plain text: a caption cannot end itself.

    Args:
        source: path of a `tokenizer.json`, as `python -m tools.train_tokenizer` writes it, or its
            content, as checkpoints keep it; or of a SentencePiece model (`.spm`, `.model`), which
            is then converted, with the ids of XLM-R and BEiT-3.
    """

    def __init__(self, source: Path | str):
        given = str(source).lstrip().startswith("{")
        path = self.path = "of the checkpoint" if given else str(source)
        content = str(source).encode() if given else _content(Path(source))
        self.sha256 = hashlib.sha256(content).hexdigest()
        try:
            self._tokenizer = FastTokenizer.from_buffer(content)
            self.content = content.decode()
            """The whole file."""
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"The tokenizer {path} is not a tokenizer.json: {error}.") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        missing = [name for name in SPECIALS if name not in vocabulary]
        if missing:
            raise ValueError(f"The tokenizer {path} lacks the special tokens {', '.join(missing)}.")
        self.bos, self.pad, self.eos, self.unk, self.mask = (vocabulary[name] for name in SPECIALS)
        self.specials = frozenset(vocabulary[name] for name in SPECIALS)
        self.ordinary = sorted(set(vocabulary.values()) - self.specials)
        """The ids of all tokens that are not special."""
        self.vocab_size = max(vocabulary.values()) + 1

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """`<s> tokens </s>`, cut to at most `max_tokens` with both ends kept."""
        return self._ended(self._tokenizer.encode(text, add_special_tokens=False).ids, max_tokens)

    def encode_words(self, text: str, max_tokens: int) -> tuple[list[int], list[int]]:
        """As `encode`, and for each token the number of its word; -1 at `<s>` and `</s>`."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = self._ended(encoding.ids, max_tokens)
        # A tokenizer without words (no pre-tokenizer) makes each token a word of its own.
        words = [i if word is None else word for i, word in enumerate(encoding.word_ids)]
        return ids, [-1, *words[: max_tokens - 2], -1]

    def _ended(self, ids: list[int], max_tokens: int) -> list[int]:
        if max_tokens < 3:
            raise ValueError(
                f"max_tokens must be at least 3 (<s>, one token, </s>), got {max_tokens}."
            )
        return [self.bos, *ids[: max_tokens - 2], self.eos]

    def encode_whole(self, text: str) -> tuple[list[int], list[int]]:
        """(ids of all of a text without special tokens, how many of its characters have been read
        once each of them has).
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding.ids, [end for _, end in encoding.offsets]

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, all of them, without `<s>` and `</s>`."""
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    @cached_property
    def spelled(self) -> list[bytes]:
        """By id, the UTF-8 that it spells; empty for special tokens and ids without a token.

        A letter of a byte-level tokenizer stands for one byte. In others the bytes of a token are
        those of its letters, with a blank for the mark of SentencePiece.
        """
        content = json.loads(self.content)
        parts = [content.get("pre_tokenizer"), content.get("decoder")]
        byte_level = any("ByteLevel" in _types(part) for part in parts)
        spelled = [b""] * self.vocab_size
        for piece, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if number in self.specials:
                continue
            if byte_level:
                spelled[number] = bytes(BYTE_OF.get(letter, ord("?")) for letter in piece)
            elif content["model"].get("byte_fallback") and BYTE.fullmatch(piece):
                spelled[number] = bytes([int(piece[3:5], 16)])
            else:
                spelled[number] = piece.replace(BLANK, " ").encode()
        return spelled

    @cached_property
    def token_bytes(self) -> list[int]:
        """By id, how many bytes of UTF-8 it spells; 0 for special tokens and unused ids."""
        return [len(piece) for piece in self.spelled]

    @cached_property
    def special_names(self) -> dict[int, str]:
        """The special tokens by id."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return {vocabulary[name]: name for name in SPECIALS}

    def unwritten(self, num_ids: int) -> set[int]:
        """Of the ids below `num_ids`, a network's vocabulary, those that no text is written with:
        special tokens but `</s>`, and ids without a token.
        """
        return set(range(num_ids)).difference(self.ordinary, [self.eos])

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(
            f"The tokenizer {path} does not exist: train one with "
            "`python -m tools.train_tokenizer`."
        )
    if path.suffix in SENTENCEPIECE:
        from mhmoe_mm.inputs.sentencepiece_model import from_sentencepiece  # which needs this one

        return from_sentencepiece(path).to_str(pretty=True).encode()
    return path.read_bytes()


def _types(part: Any) -> set[str]:
    """The names of the steps that a part of a tokenizer consists of."""
    if isinstance(part, dict):
        nested = [_types(value) for value in part.values() if isinstance(value, dict | list)]
        return {str(part.get("type"))}.union(*nested)
    return set().union(*map(_types, part)) if isinstance(part, list) else set()
