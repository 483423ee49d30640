"""The kinds of tokenizers that are trained here.

The alphabet of `bpe` and `unigram` is the 256 bytes, so that any text can be encoded, in every
language and with every emoji; that of `characters` is what was seen.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from mhmoe_mm.inputs.tokenization import SPECIALS
from tools.build_shards.errors import InputError

KINDS = ("bpe", "unigram", "characters")
ALPHABET = 256
DEFAULT_SIZE = 512
TRAINERS = {
    "bpe": lambda options: BpeTrainer(min_frequency=2, **options),
    "unigram": lambda options: UnigramTrainer(unk_token="<unk>", **options),
}


@dataclass(frozen=True)
class Kind:
    """What a tokenizer is like.

    Args:
        name: one of KINDS.
        vocab_size: at most so many tokens; None in a tokenizer of characters.
        lowercase: lower-case all text.
        lossless: give back every text as it was. Otherwise letters are composed (NFC), and a blank
            is put in front, so that the first word of a caption is the same token as elsewhere.
    """

    name: str = "bpe"
    vocab_size: int | None = None
    lowercase: bool = False
    lossless: bool = False

    def __post_init__(self):
        if self.name == "characters":
            if self.vocab_size is not None or self.lowercase:
                raise InputError("--kind characters has neither --vocab-size nor --lowercase.")
        elif self.size < len(SPECIALS) + ALPHABET:
            raise InputError(
                f"--vocab-size {self.vocab_size}: the {len(SPECIALS)} special tokens and the"
                f" {ALPHABET} bytes alone take {len(SPECIALS) + ALPHABET}."
            )
        if self.lossless and self.lowercase:
            raise InputError("--lossless and --lowercase exclude each other.")

    @property
    def size(self) -> int:
        """At most so many tokens."""
        return self.vocab_size or DEFAULT_SIZE


def train(texts: Iterable[str], kind: Kind) -> Tokenizer:
    """A tokenizer with the special tokens at ids 0 to 4."""
    return _characters(texts) if kind.name == "characters" else _of_bytes(texts, kind)


def _of_bytes(texts: Iterable[str], kind: Kind) -> Tokenizer:
    tokenizer = Tokenizer(BPE() if kind.name == "bpe" else Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=not kind.lossless)
    if kind.lossless:
        tokenizer.decoder = decoders.ByteLevel()
    else:
        lower = [normalizers.Lowercase()] if kind.lowercase else []
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), *lower])
        tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    options = {
        "vocab_size": kind.size,
        "special_tokens": list(SPECIALS),
        "initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet()),
        "show_progress": False,
    }
    tokenizer.train_from_iterator(texts, TRAINERS[kind.name](options))
    return tokenizer


def _characters(texts: Iterable[str]) -> Tokenizer:
    """One token for each character that occurs: a BPE that merges nothing."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    pieces = [*SPECIALS, *sorted(seen)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer
