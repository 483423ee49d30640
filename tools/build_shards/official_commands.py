"""The subcommands for data sets in the formats in which they are published."""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tools.build_shards.errors import InputError, Problems
from tools.build_shards.image_folder import open_image_folder
from tools.build_shards.karpathy import open_coco_captions, open_karpathy
from tools.build_shards.nlvr2 import open_nlvr2
from tools.build_shards.source import Source
from tools.build_shards.vg_qa import open_vg_qa
from tools.build_shards.vqav2 import open_vqav2

Opened = AbstractContextManager[Source]
Opener = Callable[[argparse.Namespace, Problems], Opened]


def add_official_commands(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    options: argparse.ArgumentParser,
    run: Callable[[argparse.Namespace], int],
) -> None:
    """Add a subcommand for each format; `options` are those that all builds share."""

    def add(name: str, help: str, opener: Opener) -> Callable[..., argparse.Action]:
        parser = commands.add_parser(name, parents=[options], help=help, description=help)
        parser.set_defaults(run=run, source=opener)
        return parser.add_argument

    vqav2 = add("vqav2", "VQAv2's questions and annotations with COCO's image folders", _vqav2)
    for name, required in (("questions", True), ("annotations", False), ("images", True)):
        place = "DIR" if name == "images" else "FILE"
        _add_per_split(vqav2, name, place, required)
    vqav2(
        "--keep-val",
        type=int,
        metavar="N",
        help="train on val too, except for N images of it (BEiT-3: 1000)",
    )
    _add_answers(vqav2)

    vg_qa = add("vg-qa", "Visual Genome's question_answers.json with VG_100K, VG_100K_2", _vg_qa)
    vg_qa("questions", type=Path, metavar="FILE", help="question_answers.json")
    vg_qa("images", type=Path, metavar="IMAGES", help="the folder that holds VG_100K")
    _add_answers(vg_qa)

    coco = add("coco-captions", "COCO's captions, in Karpathy's split or COCO's own", _coco)
    coco("images", type=Path, metavar="IMAGES", help="the folder that holds train2014, val2014")
    coco("--karpathy", type=Path, metavar="FILE", help="dataset_coco.json")
    _add_per_split(coco, "captions", "FILE", required=False)

    flickr = add("flickr30k", "Flickr30k in Karpathy's split", _flickr30k)
    flickr("karpathy", type=Path, metavar="FILE", help="dataset_flickr30k.json")
    flickr("images", type=Path, metavar="IMAGES", help="the folder of the images")

    nlvr2 = add("nlvr2", "NLVR2's JSON lines with its image folders", _nlvr2)
    nlvr2("images", type=Path, metavar="IMAGES", help="the folder that holds images/train or dev")
    _add_per_split(nlvr2, "examples", "FILE", required=True)

    folder = add("image-folder", "a folder for each class, below train, val, test or not", _images)
    folder("images", type=Path, metavar="IMAGES", help="holds train/CLASS/*.jpg, or CLASS/*.jpg")


def _add_per_split(
    add: Callable[..., argparse.Action], name: str, place: str, required: bool
) -> None:
    metavar = f"SPLIT={place}"
    add(f"--{name}", nargs="+", default=[], required=required, metavar=metavar)


def _add_answers(add: Callable[..., argparse.Action]) -> None:
    add(
        "--min-answers",
        type=int,
        default=9,
        metavar="N",
        help="the vocabulary has the answers that are given N times or more (default 9)",
    )
    add(
        "--answers",
        type=Path,
        metavar="FILE",
        help="take the vocabulary from this answers.json instead",
    )


def _vqav2(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_vqav2(
        arguments.questions,
        arguments.annotations,
        arguments.images,
        arguments.keep_val,
        arguments.min_answers,
        arguments.answers,
        problems,
    )


def _vg_qa(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_vg_qa(
        arguments.questions, arguments.images, arguments.min_answers, arguments.answers, problems
    )


def _coco(arguments: argparse.Namespace, problems: Problems) -> Opened:
    if arguments.karpathy and arguments.captions:
        raise InputError("--karpathy and --captions exclude each other.")
    if arguments.karpathy:
        return open_karpathy("coco-captions", arguments.karpathy, arguments.images, problems)
    return open_coco_captions(arguments.captions, arguments.images, problems)


def _flickr30k(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_karpathy("flickr30k", arguments.karpathy, arguments.images, problems)


def _nlvr2(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_nlvr2(arguments.examples, arguments.images, problems)


def _images(arguments: argparse.Namespace, problems: Problems) -> Opened:
    return open_image_folder(arguments.images, problems)
