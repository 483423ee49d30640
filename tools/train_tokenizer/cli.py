"""The command line of train_tokenizer."""

import argparse
import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer

from mhmoe_mm.inputs.sentencepiece_model import from_sentencepiece
from mhmoe_mm.storage.whole import write_bytes
from tools.build_corpus.options import add_reading_options, reading_of
from tools.build_shards.errors import InputError, run_reporting
from tools.train_tokenizer.kinds import DEFAULT_SIZE, KINDS, Kind, train
from tools.train_tokenizer.texts import Documents, read_captions

DESCRIPTION = """\
Train a tokenizer on the captions of shards or on text files, or take over one of SentencePiece.

    python -m tools.train_tokenizer data/photos --vocab-size 8000 --out data/photos/tokenizer.json
    python -m tools.train_tokenizer en=train.en.gz de=train.de.gz --lossless --vocab-size 8000 \\
      --out data/texts/tokenizer.json
    python -m tools.train_tokenizer --from-sentencepiece beit3.spm --out tokenizer.json

Text files are .txt and .jsonl, also with .gz or .zst behind, and .parquet; with a language in front
also files that are named by it, like train.de.gz.

bpe: byte-level, any text can be encoded. unigram: likewise, pieces chosen by their probability.
characters: one token for each character that occurs."""
BATCH = 1024


def main(argv: list[str] | None = None) -> int:
    """Run train_tokenizer; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: _run(arguments), "Interrupted; no tokenizer was written.")


def _run(arguments: argparse.Namespace) -> int:
    sources, model = arguments.sources, arguments.from_sentencepiece
    if bool(sources) == bool(model):
        raise InputError("give a folder of shards, text files, or --from-sentencepiece FILE.")
    if not arguments.out.parent.is_dir():
        raise InputError(f"{arguments.out.parent}, the folder of --out, does not exist.")
    if model:
        try:
            tokenizer = from_sentencepiece(model)
        except ValueError as error:
            raise InputError(str(error)) from error
        _write(tokenizer, arguments.out)
        return 0
    kind = Kind(arguments.kind, arguments.vocab_size, arguments.lowercase, arguments.lossless)
    if len(sources) == 1 and "=" not in sources[0] and not Path(sources[0]).is_file():
        what = "caption"
        texts = read_captions(Path(sources[0]), arguments.split, arguments.languages)
    elif arguments.languages:
        raise InputError("--languages chooses captions of shards; of text files give those alone.")
    else:
        what = "document"
        texts = Documents(sources, reading_of(arguments), arguments.on_error == "skip")
    if not any(texts):
        raise InputError("there is no text in what was given.")
    tokenizer = train(texts, kind)
    _write(tokenizer, arguments.out)
    _report(tokenizer, texts, kind, what)
    return 0


def _write(tokenizer: Tokenizer, out: Path) -> None:
    content = tokenizer.to_str(pretty=True).encode()
    write_bytes(out, content)
    size = tokenizer.get_vocab_size()
    print(f"{out}: {size:,} tokens, sha256 {hashlib.sha256(content).hexdigest()}")


def _report(tokenizer: Tokenizer, texts: Iterable[str], kind: Kind, what: str) -> None:
    """How well the tokenizer fits what it was trained on."""
    count = words = tokens = longest = 0
    for batch in _batches(texts):
        lengths = [len(e.ids) for e in tokenizer.encode_batch(batch, add_special_tokens=False)]
        count += len(batch)
        words += sum(len(text.split()) for text in batch)
        tokens += sum(lengths)
        longest = max(longest, *lengths)
    size = tokenizer.get_vocab_size()
    if kind.name != "characters" and size < kind.size:
        print(
            f"The {count:,} {what}s support only {size:,} tokens, not {kind.size:,}: no pair of"
            " tokens is left that occurs twice."
        )
    print(
        f"{count:,} {what}s, {words:,} words, {tokens / max(words, 1):.3f} tokens per word,"
        f" the longest {what} has {longest} tokens"
    )
    if isinstance(texts, Documents) and texts.skipped.count:
        print(f"{texts.skipped.count:,} skipped; the first: {texts.skipped.first[0].reason}")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    several = iter(texts)
    while batch := list(islice(several, BATCH)):
        yield batch


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.train_tokenizer",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "sources",
        nargs="*",
        metavar="DIR|[LANGUAGE=]FILE",
        help="a folder made by build_shards, or of shards; or text files",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="for example DIR/tokenizer.json")
    add("--kind", choices=KINDS, default="bpe", help="default bpe")
    add(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"at most so many tokens (default {DEFAULT_SIZE})",
    )
    add(
        "--lossless",
        action="store_true",
        help="keep letters as they are composed and put no blank in front: for language modelling",
    )
    add("--lowercase", action="store_true", help="also lower-case (default: only NFC)")
    add(
        "--from-sentencepiece",
        type=Path,
        metavar="FILE",
        help="convert this model instead of training",
    )
    add("--languages", nargs="+", metavar="CODE", help="captions in these (default: all there are)")
    add("--split", default="train", help="the split of shards that is read (default train)")
    add_reading_options(parser)
    return parser
