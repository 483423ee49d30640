"""Visual Genome's questions: `question_answers.json` and the folders `VG_100K`, `VG_100K_2`.

    [{"id": 2407890, "qas": [{"qa_id", "image_id", "question", "answer"}, ...]}, ...]

Answers are free text with a full stop; they are normalised, as those of the vocabulary are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mhmoe_mm.metrics.vqa_answers import normalized
from tools.build_shards.annotations import (
    entries,
    find_image,
    hashes,
    need_folder,
    read_json,
    value,
)
from tools.build_shards.answers import ANSWERS, answer_list
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.files import read_file
from tools.build_shards.source import Item, Source, one_line

FOLDERS = ("VG_100K", "VG_100K_2", ".")


@contextmanager
def open_vg_qa(
    questions: Path, images: Path, min_answers: int, answers: Path | None, problems: Problems
) -> Iterator[Source]:
    """One item per image with its questions; `val` is taken from it by --val-share."""
    items = list(_items(questions, need_folder(images), problems))
    given = [str(qa["answer"]) for item in items for qa in item.qa]
    problems.settle()  # else a vocabulary of what little is left would be the first complaint
    vocabulary, inputs = answer_list(given, min_answers, answers)
    inputs |= hashes([questions])
    yield Source("vg-qa", tuple(items), inputs, {ANSWERS: vocabulary} if vocabulary else {})


def _items(path: Path, root: Path, problems: Problems) -> Iterator[Item]:
    images: set[int] = set()
    questions: set[int] = set()
    for where, entry in entries(read_json(path), None, path):
        try:
            image = value(entry, "id", int, where)
            if image in images:
                raise InputError(f"{where} has the image id {image} again.")
            images.add(image)
            pairs = list(_pairs(entry, where, questions, problems))
            if not pairs:
                raise InputError(f"{where} (image {image}) has no question.")
            names = [f"{folder}/{image}.jpg" for folder in FOLDERS]
            found = find_image(root, names, f"{where} (image {image})")
        except InputError as error:
            problems.add(str(entry.get("id", where)), str(error))
            continue
        yield Item(
            id=str(image),
            split=None,
            captions={"en": tuple(f"{qa['question']} {qa['answer']}" for qa in pairs)},
            read=partial(read_file, found.path),
            where=f"{where} ({found.path.name})",
            size=found.size,
            stamp=found.stamp,
            qa=tuple(pairs),
            extra={"image_id": image},
        )


def _pairs(
    entry: dict[str, Any], where: str, seen: set[int], problems: Problems
) -> Iterator[dict[str, Any]]:
    for number, qa in enumerate(value(entry, "qas", list, where)):
        place = f"{where} qas[{number}]"
        try:
            if not isinstance(qa, dict):
                raise InputError(f"{place} is not an object.")
            id = value(qa, "qa_id", int, place)
            question = one_line(value(qa, "question", str, place))
            answer = normalized(value(qa, "answer", str, place))
            if id in seen:
                raise InputError(f"{place} has the qa id {id} again.")
            seen.add(id)
            if not question or not answer:
                raise InputError(f"{place} (qa {id}) has an empty question or answer.")
        except InputError as error:
            problems.add(place, str(error))
            continue
        yield {"question_id": id, "question": question, "answer": answer}
