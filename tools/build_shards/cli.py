"""The command line of build_shards."""

import argparse
from functools import partial
from pathlib import Path

from tools.build_shards.build import build
from tools.build_shards.card import print_card
from tools.build_shards.easy_vqa import open_easy_vqa
from tools.build_shards.errors import InputError, Problems, run_reporting
from tools.build_shards.folder import open_folder
from tools.build_shards.images import prepared
from tools.build_shards.index_command import index_paths
from tools.build_shards.official_commands import Opened, add_official_commands
from tools.build_shards.openmoji import open_openmoji
from tools.build_shards.plan import make_plan
from tools.build_shards.shapes import open_shapes

DESCRIPTION = """\
Build tar shards of image-text pairs: DIR/{train,val,test}/00000.tar, an index beside each, and
DIR/card.json, which is written last.

The same source and options give the same bytes. A build that was stopped continues when the same
command is run again."""
INTERRUPTED = "Interrupted; finished shards are kept, and the same command continues from there."


def main(argv: list[str] | None = None) -> int:
    """Run build_shards; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: arguments.run(arguments), INTERRUPTED)


def _build(arguments: argparse.Namespace) -> int:
    if arguments.image_size is not None and arguments.image_size < 1:
        raise InputError(f"--image-size {arguments.image_size} is not a number of pixels.")
    if arguments.max_pixels < 1:
        raise InputError(f"--max-pixels {arguments.max_pixels} is not a number of pixels.")
    problems = Problems(skip=arguments.on_error == "skip")
    with arguments.source(arguments, problems) as source:
        problems.settle()
        shares = {"val": arguments.val_share, "test": arguments.test_share}
        plan = make_plan(source, arguments.shard_size, arguments.seed, shares, arguments.image_size)
        prepare = partial(
            prepared, max_pixels=arguments.max_pixels, image_size=arguments.image_size
        )
        card = build(plan, arguments.out, prepare, problems, arguments.overwrite)
    print_card(card, arguments.out)
    return 0


def _index(arguments: argparse.Namespace) -> int:
    index_paths(arguments.paths)
    return 0


def _folder(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_folder(arguments.images, arguments.captions, problems)


def _openmoji(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_openmoji(arguments.zip, problems)


def _easy_vqa(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_easy_vqa(arguments.zip, problems)


def _shapes(arguments: argparse.Namespace, problems: Problems) -> Opened:
    counts = {"train": arguments.train, "val": arguments.val, "test": arguments.test}
    return open_shapes(counts, arguments.size, arguments.seed)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m tools.build_shards", description=DESCRIPTION, formatter_class=raw
    )
    commands = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    options = _build_options()

    folder = commands.add_parser(
        "folder",
        parents=[options],
        help="a folder of images with a captions file (TSV or JSONL)",
        description="TSV: a header with `image` and either `caption` or one column per language"
        ' code (en de ...), and optionally `split`. JSONL: {"image": "a.png", "caption": "..."}, or'
        ' "captions": {"en": ...} in place of "caption"; a caption may be a list.',
    )
    folder.add_argument("images", type=Path, metavar="IMAGES", help="folder of png, jpg, webp")
    folder.add_argument("--captions", type=Path, required=True, metavar="FILE")
    folder.set_defaults(run=_build, source=_folder)

    openmoji = commands.add_parser(
        "openmoji", parents=[options], help="OpenMoji's zip: captions.tsv and images/*.png"
    )
    openmoji.add_argument("zip", type=Path, metavar="ZIP")
    openmoji.set_defaults(run=_build, source=_openmoji)

    easy_vqa = commands.add_parser(
        "easy-vqa", parents=[options], help="easy-VQA's zip: questions.json and images per split"
    )
    easy_vqa.add_argument("zip", type=Path, metavar="ZIP")
    easy_vqa.set_defaults(run=_build, source=_easy_vqa)

    shapes = commands.add_parser(
        "shapes", parents=[options], help="a corpus of coloured shapes, made on the spot"
    )
    for split, count in {"train": 8000, "val": 500, "test": 500}.items():
        shapes.add_argument(
            f"--{split}", type=int, default=count, metavar="N", help=f"scenes (default {count})"
        )
    shapes.add_argument(
        "--size", type=int, default=32, metavar="PIXELS", help="side of a picture (default 32)"
    )
    shapes.set_defaults(run=_build, source=_shapes)

    add_official_commands(commands, options, run=_build)

    index = commands.add_parser("index", help="write the index of tars that are already there")
    index.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a tar, or a folder")
    index.set_defaults(run=_index)
    return parser


def _build_options() -> argparse.ArgumentParser:
    """What all subcommands that build have in common."""
    options = argparse.ArgumentParser(add_help=False)
    add = options.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to build")
    add(
        "--shard-size",
        default="1000",
        metavar="N|BYTES",
        help="samples per shard, or bytes of the source's images such as 64MB (default 1000)",
    )
    add("--seed", type=int, default=0, help="order of the samples; for shapes the scenes too")
    add(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="validation share by hash of the image's name, for a source that has no val split"
        " (default 0.05 where it has no splits at all, else 0)",
    )
    add("--test-share", type=float, metavar="SHARE", help="the same for test (default 0)")
    add(
        "--image-size",
        type=int,
        metavar="S",
        help="shrink images to S pixels at their shorter side; never enlarges (default: keep)",
    )
    add(
        "--max-pixels",
        type=int,
        default=50_000_000,
        metavar="N",
        help="larger images are an error (default 50 million)",
    )
    add(
        "--on-error",
        choices=("refuse", "skip"),
        default="refuse",
        help="skip counts and lists every sample that cannot be built (default refuse)",
    )
    resume = options.add_mutually_exclusive_group()
    resume.add_argument(
        "--resume", action="store_true", help="keep finished shards of the same plan (the default)"
    )
    resume.add_argument(
        "--overwrite", action="store_true", help="replace a build that is already in the folder"
    )
    return options
