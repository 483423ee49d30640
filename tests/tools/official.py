"""Tiny data sets in exactly the formats in which the official ones are published."""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from tests.tools.making import picture

LICENSE = {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}
TEN = ["net", "net", "net", "netting", "net", "mesh", "net", "net", "netting", "mesh"]


class Asked(NamedTuple):
    """What ten people said to a question of a kind."""

    question_type: str
    answer_type: str
    answers: list[str]


NETS = (Asked("what is", "other", TEN),)
VARIED = (
    Asked("what is", "other", TEN),
    Asked("is there", "yes/no", ["yes"] * 10),
    Asked("how many", "number", ["two"] * 5 + ["2"] * 2 + ["3"] * 3),
    Asked("is there", "yes/no", ["no"] * 8 + ["yes"] * 2),
    Asked("what color", "other", ["blue", "teal", "blue", *(f"blue {n}" for n in range(7))]),
)
"""Several types, an answer that all gave, one that is also written otherwise, and one that only two
gave, so that nobody is right every time."""
TINTS = ("black", "white", "red", "lime", "blue")


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_image(path: Path, seed: int, image_format: str = "JPEG") -> bytes:
    content = picture(seed, image_format=image_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def kind_of(image: int, asked: Sequence[Asked]) -> Asked:
    """How an image is asked about: the answers can be told from it."""
    return asked[image % len(asked)]


def vqa_questions(
    subtype: str, images: int = 3, each: int = 2, asked: Sequence[Asked] = NETS
) -> dict[str, Any]:
    """`v2_OpenEnded_mscoco_<subtype>_questions.json`: question ids are image id x 1000 + number."""

    def begins(image: int) -> str:
        return kind_of(image, asked).question_type.capitalize()

    questions = [
        {
            "image_id": image,
            "question": f"{begins(image)} thing {n} of image {image}?",
            "question_id": image * 1000 + n,
        }
        for image, n in product(range(1, images + 1), range(each))
    ]
    return {
        "info": {"year": 2017, "version": "2.0", "contributor": "VQA Team"},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": LICENSE,
        "data_subtype": subtype,
        "questions": questions,
    }


def vqa_annotations(questions: dict[str, Any], asked: Sequence[Asked] = NETS) -> dict[str, Any]:
    """`v2_mscoco_<subtype>_annotations.json`: annotations of questions."""
    annotations = []
    for question in questions["questions"]:
        question_type, answer_type, answers = kind_of(question["image_id"], asked)
        annotations.append(
            {
                "question_type": question_type,
                "multiple_choice_answer": max(answers, key=answers.count),
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                    for number, answer in enumerate(answers, start=1)
                ],
                "image_id": question["image_id"],
                "answer_type": answer_type,
                "question_id": question["question_id"],
            }
        )
    head = {key: questions[key] for key in ("info", "license", "data_subtype")}
    return {**head, "annotations": annotations}


def vqav2(folder: Path, images: int = 3, each: int = 2, asked: Sequence[Asked] = NETS) -> list[str]:
    """All of VQAv2 below a folder; returns the arguments of the build without --out."""
    arguments: dict[str, list[str]] = {"--questions": [], "--annotations": [], "--images": []}
    for split, subtype in {"train": "train2014", "val": "val2014", "test": "test2015"}.items():
        questions = vqa_questions(subtype, images, each, asked)
        path = write_json(folder / f"v2_OpenEnded_mscoco_{subtype}_questions.json", questions)
        arguments["--questions"].append(f"{split}={path}")
        if split != "test":
            annotations = vqa_annotations(questions, asked)
            path = write_json(folder / f"v2_mscoco_{subtype}_annotations.json", annotations)
            arguments["--annotations"].append(f"{split}={path}")
        for image in range(1, images + 1):
            name = f"COCO_{subtype}_{image:012d}.jpg"
            path = folder / subtype / name
            if asked is NETS:
                write_image(path, seed=len(split) * 100 + image)
            else:
                path.parent.mkdir(exist_ok=True)
                Image.new("RGB", (13, 11), TINTS[image % len(TINTS)]).save(path)
        arguments["--images"].append(f"{split}={folder / subtype}")
    return ["vqav2", *(text for name, values in arguments.items() for text in (name, *values))]


def karpathy(folder: Path, dataset: str, count: int = 5) -> Path:
    """`dataset_coco.json` or `dataset_flickr30k.json` with its images below `folder/images`."""
    images = []
    for number in range(count):
        split = ("train", "restval" if dataset == "coco" else "train", "val", "test")[number % 4]
        sentences = [
            {
                "tokens": ["a", "man", str(k)],
                "raw": f"A man, number {number}.{k} ",
                "imgid": number,
                "sentid": number * 5 + k,
            }
            for k in range(5)
        ]
        entry: dict[str, Any] = {
            "sentids": [sentence["sentid"] for sentence in sentences],
            "imgid": number,
            "sentences": sentences,
            "split": split,
            "filename": f"{1000 + number}.jpg",
        }
        if dataset == "coco":
            part = "val2014" if number % 4 else "train2014"
            filename = f"COCO_{part}_{700 + number:012d}.jpg"
            entry |= {"filepath": part, "filename": filename, "cocoid": 700 + number}
        images.append(entry)
        write_image(folder / "images" / entry.get("filepath", "") / entry["filename"], seed=number)
    return write_json(folder / f"dataset_{dataset}.json", {"images": images, "dataset": dataset})


def coco_captions(folder: Path, subset: str, count: int = 3) -> Path:
    """`captions_<subset>.json`, with its images in `folder/<subset>`; image i has i captions."""
    images, annotations = [], []
    for number in range(1, count + 1):
        filename = f"{number:012d}.jpg"
        images.append(
            {
                "license": 1,
                "file_name": filename,
                "coco_url": "",
                "height": 11,
                "width": 13,
                "date_captured": "2013-11-14 17:02:52",
                "flickr_url": "",
                "id": number,
            }
        )
        for k in range(number):
            caption = f"Caption {k} of {number}.\n"
            annotations.append({"image_id": number, "id": number * 100 + k, "caption": caption})
        write_image(folder / subset / filename, seed=number)
    content = {
        "info": {"year": 2014},
        "images": images,
        "licenses": [LICENSE],
        "annotations": annotations,
    }
    return write_json(folder / f"captions_{subset}.json", content)


def nlvr2_line(
    split: str, number: int, sentence: int = 0, label: str = "True", pair: int = 1
) -> dict[str, Any]:
    """One example as in `train.json`, `dev.json`, `test1.json`."""
    example = {
        "validations": {},
        "sentence": f"There are {number} dogs, and {sentence} of them sleep.",
        "left_url": "https://example.org/left.jpg",
        "right_url": "https://example.org/right.jpg",
        "writer": "27",
        "label": label,
        "synset": "dog",
        "query": "dogs0",
        "identifier": f"{split}-{number}-{pair}-{sentence}",
        "extra_validations": {},
    }
    return example | ({"directory": number % 3} if split == "train" else {})


def nlvr2(folder: Path, split: str, sets: int = 3, pairs: int = 1) -> Path:
    """`<split>.json` and the images; about the pairs of a set there are sentences 0, which is true,
    and 2, which is false; it is the reverse of pair 2 of set 2 and of few others."""
    lines = []
    for number, pair in product(range(1, sets + 1), range(1, pairs + 1)):
        for sentence in (0, 2):
            label = str((sentence == 0) != (number * pair % 5 == 4))
            lines.append(nlvr2_line(split, number, sentence, label, pair))
        where = f"images/train/{number % 3}" if split == "train" else split
        for side in (0, 1):
            name = f"{split}-{number}-{pair}-img{side}.png"
            # Files that are called .png may hold a JPEG there.
            kind = "JPEG" if number == 2 and side == 1 else "PNG"
            seed = 1000 * (pair - 1) + 10 * number + side
            write_image(folder / where / name, seed=seed, image_format=kind)
    path = folder / f"{split}.json"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def visual_genome(folder: Path, count: int = 4) -> Path:
    """`question_answers.json` with images in VG_100K and VG_100K_2; image i has i questions."""
    entries = []
    for number in range(1, count + 1):
        qas = [
            {
                "a_objects": [],
                "question": f"What is thing {k}?",
                "image_id": number,
                "qa_id": 100 * number + k,
                "answer": "On the wall." if k % 2 else "Two.",
                "q_objects": [],
            }
            for k in range(number)
        ]
        entries.append({"id": number, "qas": qas})
        place = "VG_100K" if number % 2 else "VG_100K_2"
        write_image(folder / place / f"{number}.jpg", seed=number)
    return write_json(folder / "question_answers.json", entries)


def class_folders(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """ImageNet's layout: three classes, with 4, 3 and 2 images."""
    for split in splits:
        for number, name in enumerate(("n02", "n01", "n13")):
            for k in range(4 - number):
                write_image(root / split / name / f"{name}_{k}.JPEG", seed=10 * number + k)
    return root
