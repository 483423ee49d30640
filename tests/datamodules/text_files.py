"""Small token files: a tokenizer of letters, and documents that tests can count."""

import random
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from datamodules.token_files import TokenFile
from mhmoe_mm.inputs.tokenization import SPECIALS, Tokenizer
from tools.build_corpus.token_writer import TokenWriter

LETTERS = "abcdefghijklmnopqrstuvwxyzé \n"


def letter_tokenizer(path: Path, letters: str = LETTERS) -> Path:
    """A tokenizer with one token for each letter."""
    vocabulary = {piece: number for number, piece in enumerate([*SPECIALS, *letters])}
    tokenizer = FastTokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(path))
    return path


def some_texts(count: int, seed: int) -> list[str]:
    """Documents of 1 to 23 letters, no two alike in their first four where they have them."""
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randrange(1, 24))) for _ in range(count)]


def write_tokens(path: Path, tokenizer: Path, texts: list[str], language: str = "en") -> TokenFile:
    """A token file of some documents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TokenWriter(path, language, Tokenizer(tokenizer)) as writer:
        writer.add(texts)
        writer.finish()
    return TokenFile(path)
