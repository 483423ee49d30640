"""The command line of build_corpus."""

import argparse
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mhmoe_mm.inputs.tokenization import Tokenizer
from tools.build_corpus.build import Card, Input, Options, Shares, build
from tools.build_corpus.documents import Reading, Skipped
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
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


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
    reading = Reading(arguments.field, arguments.whole_files)
    options = Options(reading, shares, arguments.overwrite)
    skipped = Skipped(arguments.on_error == "skip")
    card = build(inputs, arguments.out, tokenizer, options, skipped)
    print_card(card, arguments.out)
    return 0


def _inputs(given: list[str] | None, split: str) -> list[Input]:
    """`en=FILE de=FILE` of a split."""
    inputs = []
    for text in given or ():
        language, equals, path = text.partition("=")
        if not equals or not LANGUAGE.fullmatch(language):
            raise InputError(
                f"--{split} {text}: give LANGUAGE=FILE, where LANGUAGE is a code like en or pt-BR"
                " (und where it is not known)."
            )
        inputs.append(Input(split, language, Path(path)))
    return inputs


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
    add("--field", default="text", help="of a JSON line, or column of parquet (default text)")
    add("--whole-files", action="store_true", help="a .txt is one document, not one a line")
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
    add(
        "--on-error",
        choices=("refuse", "skip"),
        default="refuse",
        help="skip counts and lists what is empty, broken or not UTF-8 (default refuse)",
    )
    add("--overwrite", action="store_true", help="replace a corpus that is already in the folder")
    return parser
