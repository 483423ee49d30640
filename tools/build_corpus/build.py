"""Building a folder of token files: one file for each split and language, and the card last."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from datamodules.token_files import SUFFIX
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.storage.whole import PART
from tools.build_corpus.documents import Reading, Skipped, kind_of, read_documents
from tools.build_corpus.token_writer import TokenRecord, TokenWriter
from tools.build_shards.annotations import hashes
from tools.build_shards.card import Card, write_card
from tools.build_shards.errors import InputError
from tools.build_shards.progress import ProgressBar
from tools.build_shards.source import SPLITS

FORMAT = "corpus 1"
BATCH_LETTERS, BATCH_DOCUMENTS = 2**20, 1024


@dataclass(frozen=True)
class Input:
    """A file with the documents of one language."""

    split: str
    language: str
    path: Path


@dataclass(frozen=True)
class Shares:
    """What of the training documents goes into other splits.

    Args:
        val: share of the documents, chosen by a hash of their text.
        test: likewise.
        val_tail: share of the letters of each document, at its end.
    """

    val: float = 0.0
    test: float = 0.0
    val_tail: float = 0.0

    def __post_init__(self):
        shares = (self.val, self.test, self.val + self.test, self.val_tail)
        if not all(0 <= share < 1 for share in shares):
            raise InputError(
                "--val-share, --test-share and --val-tail are shares of at least 0 that leave"
                f" something to train on, got {self.val}, {self.test} and {self.val_tail}."
            )
        if self.val_tail and (self.val or self.test):
            raise InputError("--val-tail cannot be used with --val-share or --test-share.")

    def divided(self, text: str) -> Iterator[tuple[str, str]]:
        """(split, text) of the parts of a training document; copies of it go the same way."""
        if self.val_tail:
            cut = int(len(text) * (1 - self.val_tail))
            yield from (pair for pair in (("train", text[:cut]), ("val", text[cut:])) if pair[1])
            return
        drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
        if drawn < self.test:
            yield "test", text
        else:
            yield ("val" if drawn < self.test + self.val else "train"), text


@dataclass(frozen=True)
class Options:
    """How a corpus is made.

    Args:
        reading: how files are read.
        shares: what of the training documents goes into other splits.
        overwrite: replace a corpus that is there.
    """

    reading: Reading
    shares: Shares
    overwrite: bool = False


def build(
    inputs: list[Input], out: Path, tokenizer: Tokenizer, options: Options, skipped: Skipped
) -> Card:
    """Write the token files of all inputs into a folder; returns its card."""
    for each in inputs:
        kind_of(each.path, each.language)
    _clear(out, options.overwrite)
    try:
        splits = _write_all(inputs, out, tokenizer, options, skipped)
    except BaseException:
        _remove_files(out)  # what is whole in a corpus that is not
        raise
    card = {
        "format": FORMAT,
        "tokenizer": {"sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size},
        "inputs": hashes([each.path for each in inputs]),
        "options": {**asdict(options.reading), **asdict(options.shares)},
        "splits": {
            split: {language: asdict(record) for language, record in splits[split].items()}
            for split in SPLITS
            if split in splits
        },
        "skipped": {"count": skipped.count, "first": [asdict(each) for each in skipped.first]},
    }
    write_card(card, out)
    return card


def _write_all(
    inputs: list[Input], out: Path, tokenizer: Tokenizer, options: Options, skipped: Skipped
) -> dict[str, dict[str, TokenRecord]]:
    """By split and language, the token files."""
    splits: dict[str, dict[str, TokenRecord]] = {}
    size = sum(each.path.stat().st_size for each in inputs)
    with ProgressBar("corpus", max(size, 1), unit="bytes") as bar:
        for language in dict.fromkeys(each.language for each in inputs):
            own = [each for each in inputs if each.language == language]
            texts = _texts(own, options, skipped, bar)
            records = _write(texts, out, language, tokenizer)
            for split in dict.fromkeys(each.split for each in own):
                if split not in records:
                    raise InputError(f"the files of {language} have no document for {split}.")
            for split, record in records.items():
                splits.setdefault(split, {})[language] = record
    return splits


def _texts(
    inputs: list[Input], options: Options, skipped: Skipped, bar: ProgressBar
) -> Iterator[tuple[str, str]]:
    """(split, text) of all documents of some files."""
    for each in inputs:
        documents = read_documents(each.path, each.language, options.reading, skipped, bar.advance)
        for text in documents:
            if each.split == "train":
                yield from options.shares.divided(text)
            else:
                yield each.split, text


def _write(
    texts: Iterator[tuple[str, str]], out: Path, language: str, tokenizer: Tokenizer
) -> dict[str, TokenRecord]:
    """By split the token file of a language; each gets its name when all of them are complete."""
    with ExitStack() as stack:
        batches: dict[str, _Batch] = {}
        for split, text in texts:
            if split not in batches:
                path = out / split / f"{language}{SUFFIX}"
                path.parent.mkdir(exist_ok=True)
                writer = stack.enter_context(TokenWriter(path, language, tokenizer))
                batches[split] = _Batch(writer)
            batches[split].add(text)
        return {split: batch.finish() for split, batch in batches.items()}


class _Batch:
    """Documents on their way into a writer, several at a time: so they are encoded in parallel."""

    def __init__(self, writer: TokenWriter):
        self.writer = writer
        self.waiting: list[str] = []
        self.letters = 0

    def add(self, text: str) -> None:
        self.waiting.append(text)
        self.letters += len(text)
        if self.letters >= BATCH_LETTERS or len(self.waiting) >= BATCH_DOCUMENTS:
            self._write()

    def finish(self) -> TokenRecord:
        self._write()
        return self.writer.finish()

    def _write(self) -> None:
        if self.waiting:
            self.writer.add(self.waiting)
        self.waiting, self.letters = [], 0


def _clear(out: Path, overwrite: bool) -> None:
    """Make the folder ready; what an earlier build of a corpus left there goes, the card first."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out names a folder.")
    out.mkdir(parents=True, exist_ok=True)
    card = out / "card.json"
    if card.exists():
        try:
            format = json.loads(card.read_bytes())["format"]
        except (ValueError, KeyError, TypeError):
            format = None
        if format != FORMAT:
            raise InputError(f"{out} holds other data than a corpus; choose another folder.")
        if not overwrite:
            raise InputError(
                f"{out} holds a corpus already; choose another folder, or replace it with"
                " --overwrite."
            )
        card.unlink()
    _remove_files(out)


def _remove_files(out: Path) -> None:
    for split in SPLITS:
        for pattern in (f"*{SUFFIX}", f"*{SUFFIX}*{PART}"):
            for path in (out / split).glob(pattern):
                path.unlink()
