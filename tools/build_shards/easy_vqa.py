"""easy-VQA's zip: `train` and `test`, each with `questions.json` and `images/ID.png`.

`questions.json` is a list of [question, answer, image id].
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mhmoe_mm.storage.whole import file_sha256
from tools.build_shards.answers import ANSWERS
from tools.build_shards.archive import Archive, open_archive
from tools.build_shards.errors import InputError, Problems
from tools.build_shards.source import Item, Source, one_line

Questions = dict[str, list[tuple[str, str]]]


@contextmanager
def open_easy_vqa(path: Path, problems: Problems) -> Iterator[Source]:
    """One item per image: its captions are lines "question answer", its `qa` the same in two."""
    with open_archive(path) as archive:
        lines = archive.read("answers.txt").decode("utf-8", "replace").split("\n")
        answers = tuple(dict.fromkeys(answer for line in lines if (answer := one_line(line))))
        items = [
            item
            for split in ("train", "test")
            for item in _items(archive, split, frozenset(answers), problems)
        ]
        inputs = {path.name: file_sha256(path)}
        yield Source("easy-vqa", tuple(items), inputs, {ANSWERS: answers})


def _items(
    archive: Archive, split: str, answers: frozenset[str], problems: Problems
) -> Iterator[Item]:
    folder = f"{split}/images/"
    asked = _questions(archive, split, answers, problems)
    images = {
        name.removeprefix(folder).removesuffix(".png"): name
        for name in archive.members
        if name.startswith(folder) and name.endswith(".png")
    }
    for image_id, pairs in asked.items():
        if image_id not in images:
            problems.add(
                f"{split}/{image_id}",
                f"{split}/questions.json in {archive.path} asks {len(pairs)} questions about image"
                f" {image_id}, but {folder}{image_id}.png is missing.",
            )
    for image_id, member in images.items():
        if image_id not in asked:
            reason = f"{member} in {archive.path} has no question in {split}/questions.json."
            problems.add(f"{split}/{image_id}", reason)
            continue
        pairs = asked[image_id]
        yield Item(
            id=f"{split}/{image_id}",
            split=split,
            captions={"en": tuple(f"{question} {answer}" for question, answer in pairs)},
            read=partial(archive.read, member),
            where=f"{archive.path.name}, {member}",
            size=archive.size(member),
            qa=tuple({"question": question, "answer": answer} for question, answer in pairs),
        )


def _questions(
    archive: Archive, split: str, answers: frozenset[str], problems: Problems
) -> Questions:
    """Image id -> its questions with answers, in the file's order."""
    name = f"{split}/questions.json"
    entries = archive.read_json(name)
    if not isinstance(entries, list):
        raise InputError(f"{name} in {archive.path} is not a list of questions.")
    asked: Questions = {}
    for number, entry in enumerate(entries):
        match entry:
            case [str(question), str(answer), int() | str() as image_id]:
                pair = one_line(question), one_line(answer)
            case _:
                where = f"{name} entry {number}"
                problems.add(where, f"{where} is not [question, answer, image id].")
                continue
        if not all(pair) or pair[1] not in answers:
            where = f"{name} entry {number} (image {image_id})"
            problems.add(
                f"{split}/{image_id}",
                f"{where} has an empty question, or an answer that is not in answers.txt:"
                f" '{pair[1]}'.",
            )
            continue
        asked.setdefault(str(image_id), []).append(pair)
    return asked
