"""VQAv2: questions and annotations as the challenge publishes them, and COCO's image folders.

    questions    {"data_subtype": "train2014",
                  "questions": [{"question_id", "image_id", "question"}]}
    annotations  {"annotations": [{"question_id", "image_id", "question_type", "answer_type",
                                   "multiple_choice_answer", "answers": [{"answer"}, ... 10]}]}
    images       COCO_train2014_000000000009.jpg, or 000000000009.jpg

A split without annotations (the test) gets its questions without answers.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from sys import intern
from typing import Any

from tools.build_shards.annotations import (
    entries,
    find_image,
    hashes,
    need_folder,
    read_json,
    split_paths,
    value,
)
from tools.build_shards.answers import ANSWERS, answer_list
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.files import read_file
from tools.build_shards.source import Item, Source, one_line

NUM_ANSWERS = 10
Marks = Mapping[int, dict[str, Any] | None]


@contextmanager
def open_vqav2(
    questions: list[str],
    annotations: list[str],
    images: list[str],
    keep_val: int | None,
    min_answers: int,
    answers: Path | None,
    problems: Problems,
) -> Iterator[Source]:
    """One item per image with all its questions; the vocabulary is that of all the annotations.

    `keep_val`: how many images of `val` stay there, chosen by a hash of their names; the questions
    of the others are added to `train`.
    """
    asked = split_paths(questions, "--questions")
    annotated = split_paths(annotations, "--annotations")
    folders = split_paths(images, "--images")
    for split in sorted(asked.keys() - folders.keys()):
        raise InputError(f"--images {split}=DIR is missing: --questions has the split {split}.")
    for split in sorted(annotated.keys() - asked.keys()):
        raise InputError(f"--questions {split}=FILE is missing: --annotations has it.")
    items: list[Item] = []
    usual: list[str] = []
    for split in asked:
        marks = _annotations(annotated.get(split), problems)
        usual += (mark["multiple_choice_answer"] for mark in marks.values() if mark)
        known = marks if split in annotated else None
        items += _items(split, asked[split], known, need_folder(folders[split]), problems)
    problems.settle()  # else a vocabulary of what little is left would be the first complaint
    vocabulary, inputs = answer_list(usual, min_answers, answers)
    if keep_val is not None:
        items = _with_val_of(items, keep_val)
    inputs |= hashes([*asked.values(), *annotated.values()])
    yield Source("vqav2", tuple(items), inputs, {ANSWERS: vocabulary} if vocabulary else {})


def _items(
    split: str,
    path: Path,
    marks: Marks | None,
    folder: Path,
    problems: Problems,
) -> Iterator[Item]:
    content = read_json(path)
    subtype = content.get("data_subtype") if isinstance(content, dict) else None
    by_image = _by_image(content, path, marks, problems)
    for image, pairs in by_image.items():
        # The images of test-dev2015 are those of test2015.
        coco = f"COCO_{str(subtype).replace('-dev', '')}_{image:012d}.jpg"
        where = f"{path.name}, image {image}"
        try:
            found = find_image(folder, (coco, f"{image:012d}.jpg"), where)
        except InputError as error:
            problems.add(f"{split}/{image}", f"{str(error)[:-1]}; it has {len(pairs)} questions.")
            continue
        lines = (f"{qa['question']} {qa.get('answer', '')}".strip() for qa in pairs)
        yield Item(
            id=f"{split}/{image}",
            split=split,
            captions={"en": tuple(lines)},
            read=partial(read_file, found.path),
            where=f"{where} ({found.path.name})",
            size=found.size,
            stamp=found.stamp,
            qa=tuple(pairs),
            extra={"image_id": image},
        )


def _by_image(
    content: Any, path: Path, marks: Marks | None, problems: Problems
) -> dict[int, list[dict[str, Any]]]:
    """Image -> its questions in the file's order, with their answers where there are such."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    seen: set[int] = set()
    for where, entry in entries(content, "questions", path):
        try:
            question = _question(entry, where, marks, seen)
        except InputError as error:
            problems.add(str(entry.get("question_id", where)), str(error))
            continue
        if question is not None:
            by_image.setdefault(entry["image_id"], []).append(question)
    for unasked in sorted((marks or {}).keys() - seen):
        reason = f"the annotation of question {unasked} belongs to no question in {path.name}."
        problems.add(str(unasked), reason)
    return by_image


def _question(
    entry: dict[str, Any], where: str, marks: Marks | None, seen: set[int]
) -> dict[str, Any] | None:
    """A question with its answers; None where its annotation is a problem that was told."""
    number = value(entry, "question_id", int, where)
    image = value(entry, "image_id", int, where)
    text = one_line(value(entry, "question", str, where))
    if number in seen:
        raise InputError(f"{where} has the question id {number} again.")
    seen.add(number)
    if not text:
        raise InputError(f"{where} (question {number}) has an empty question.")
    question = {"question_id": number, "question": text}
    if marks is None:
        return question
    if number not in marks:
        raise InputError(f"{where} (question {number}) has no annotation.")
    mark = marks[number]
    if mark is None:
        return None
    if mark["image_id"] != image:
        raise InputError(
            f"{where} (question {number}) is about image {image},"
            f" its annotation about image {mark['image_id']}."
        )
    about = {key: mark[key] for key in ("answers", "question_type", "answer_type")}
    return {**question, "answer": one_line(mark["multiple_choice_answer"]), **about}


def _annotations(path: Path | None, problems: Problems) -> dict[int, dict[str, Any] | None]:
    """Question id -> what is known about it, in the file's order; None where it is faulty."""
    if path is None:
        return {}
    marks: dict[int, dict[str, Any] | None] = {}
    for where, entry in entries(read_json(path), "annotations", path):
        try:
            number = value(entry, "question_id", int, where)
            if number in marks:
                raise InputError(f"{where} has the question id {number} again.")
            marks[number] = None
            marks[number] = _annotation(entry, number, where)
        except InputError as error:
            problems.add(str(entry.get("question_id", where)), str(error))
    return marks


def _annotation(entry: dict[str, Any], number: int, where: str) -> dict[str, Any]:
    given = value(entry, "answers", list, where)
    texts = [a.get("answer") if isinstance(a, dict) else None for a in given]
    if len(texts) != NUM_ANSWERS or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where} (question {number}) has {len(texts)} answers instead of {NUM_ANSWERS},"
            ' or one without "answer".'
        )
    return {
        "image_id": value(entry, "image_id", int, where),
        "multiple_choice_answer": value(entry, "multiple_choice_answer", str, where),
        "question_type": value(entry, "question_type", str, where),
        "answer_type": value(entry, "answer_type", str, where),
        "answers": [intern(str(text)) for text in texts],  # millions, but few different ones
    }


def _with_val_of(items: list[Item], keep: int) -> list[Item]:
    """The items with only `keep` of those of `val` left there, the others in `train`."""
    val = [item.id for item in items if item.split == "val"]
    if not 0 < keep <= len(val):
        raise InputError(f"--keep-val {keep}: the val split has {len(val)} images.")
    val.sort(key=lambda id: hashlib.sha256(id.encode()).digest())
    moved = set(val[keep:])
    return [replace(item, split="train") if item.id in moved else item for item in items]
