"""What programs that read text files have in common on their command lines."""

import argparse
import re
from pathlib import Path

from tools.build_corpus.documents import Reading
from tools.build_shards.errors import InputError

LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How text files are read."""
    add = parser.add_argument
    add("--field", default="text", help="of a JSON line, or column of parquet (default text)")
    add("--whole-files", action="store_true", help="a .txt is one document, not one a line")
    add(
        "--on-error",
        choices=("refuse", "skip"),
        default="refuse",
        help="skip counts and lists what is empty, broken or not UTF-8 (default refuse)",
    )


def reading_of(arguments: argparse.Namespace) -> Reading:
    """What `add_reading_options` was given."""
    return Reading(arguments.field, arguments.whole_files)


def named_file(text: str, option: str) -> tuple[str, Path]:
    """`en=FILE` as language and path."""
    language, equals, path = text.partition("=")
    if not equals or not LANGUAGE.fullmatch(language):
        raise InputError(
            f"{option}{text}: give LANGUAGE=FILE, where LANGUAGE is a code like en or pt-BR"
            " (und where it is not known)."
        )
    return language, Path(path)
