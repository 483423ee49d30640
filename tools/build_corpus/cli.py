"""The command line of build_corpus."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mhmoe_mm.inputs.tokenization import Tokenizer
from tools.build_corpus.build import Input, Options, Shares, build
from tools.build_corpus.documents import Skipped
from tools.build_corpus.options import add_reading_options, named_file, reading_of
from tools.build_shards.card import Card
from tools.build_shards.errors import InputError, run_reporting
from tools.build_shards.source import SPLITS

DESCRIPTION = """\
Build the token files of language modelling: DIR/{train,val,test}/LANGUAGE.safetensors, and
DIR/card.json, which is written last.

    python -m tools.build_corpus --tokenizer DIR/tokenizer.json --out DIR \\
      --train en=train.en.gz de=train.de.gz --val en=val.en.gz de=val.de.gz

Reads .txt and .jsonl, also with .gz or .zst behind, and .parquet; a text file may also be named by
its language, like train.en.gz. The same inputs and options give the same bytes."""
INTERRUPTED = "Interrupted; no card was written, and the same command begins anew."


def main(argv: list[str] | None = None) -> int:
    """Run build_corpus; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: _run(arguments), INTERRUPTED)


def _run(arguments: argparse.Namespace) -> int:
    inputs = [each for split in SPLITS for each in _inputs(getattr(arguments, split), split)]
    shares = Shares(arguments.val_share, arguments.test_share, arguments.val_tail)
    _check(inputs, shares)
    try:
        tokenizer = Tokenizer(arguments.tokenizer)
    except ValueError as error:
        raise InputError(str(error)) from error
    options = Options(reading_of(arguments), shares, arguments.overwrite)
    skipped = Skipped(arguments.on_error == "skip")
    card = build(inputs, arguments.out, tokenizer, options, skipped)
    print_card(card, arguments.out)
    return 0


def _inputs(given: list[str] | None, split: str) -> list[Input]:
    """`en=FILE de=FILE` of a split."""
    return [Input(split, *named_file(text, f"--{split} ")) for text in given or ()]


def _check(inputs: list[Input], shares: Shares) -> None:
    if not inputs:
        raise InputError("give at least one of --train, --val and --test.")
    paths = [each.path.resolve() for each in inputs]
    for each, path in zip(inputs, paths, strict=True):
        if paths.count(path) > 1:
            raise InputError(f"{each.path} is given twice; one language and one split a file.")
    given = {each.split for each in inputs}
    taken = {"val": shares.val or shares.val_tail, "test": shares.test}
    for split in ("val", "test"):
        if taken[split] and split in given:
            raise InputError(
                f"--{split} has the documents of {split}: leave out"
                f" --{split}-share{' and --val-tail' if split == 'val' else ''}."
            )


def print_card(card: Card, out: Path) -> None:
    """The short table at the end of a build, and what was skipped."""
    table = Table(title=str(out), title_justify="left")
    table.add_column("split")
    table.add_column("language")
    for column in ("documents", "tokens", "bytes of text", "bytes a token", "<unk>"):
        table.add_column(column, justify="right")
    for split, languages in card["splits"].items():
        for language, about in languages.items():
            counts = [about["documents"], about["tokens"], about["text_bytes"]]
            cells = [f"{count:,}" for count in counts]
            cells += [f"{about['text_bytes'] / about['tokens']:.2f}", f"{about['unknown']:,}"]
            table.add_row(split, language, *cells)
    console = Console()
    console.print(table)
    skipped = card["skipped"]
    console.print(f"skipped: {skipped['count']:,}", highlight=False)
    for problem in skipped["first"]:
        console.print(f"skipped {problem['reason']}", markup=False, highlight=False)
    if more := skipped["count"] - len(skipped["first"]):
        console.print(f"and {more:,} more", highlight=False)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_corpus", description=DESCRIPTION, formatter_class=raw
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to build")
    add(
        "--tokenizer",
        type=Path,
        required=True,
        metavar="FILE",
        help="a tokenizer.json, as tools.train_tokenizer writes it",
    )
    for split in SPLITS:
        add(
            f"--{split}",
            nargs="+",
            action="extend",
            metavar="LANGUAGE=FILE",
            help=f"documents of {split}; a language may have several files",
        )
    add(
        "--val-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of the training documents that become val, by a hash of their text",
    )
    add("--test-share", type=float, default=0.0, metavar="SHARE", help="the same for test")
    add(
        "--val-tail",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="the last SHARE of the letters of every training document becomes val",
    )
    add_reading_options(parser)
    add("--overwrite", action="store_true", help="replace a corpus that is already in the folder")
    return parser
