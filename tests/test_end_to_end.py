"""The path of a user, with every official data set: from the files as they are published to figures
and to files for the official servers, which must tell the same."""

import csv
import json
from collections import defaultdict
from math import isclose
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mhmoe_mm.metrics.captions import CaptionScores
from tests import official_runs
from tests.official_runs import Project
from tests.tools import official
from tests.tools.making import samples_in
from tools.build_shards.cli import main as build_shards

ROWS = {  # (samples, questions) of each split in the published files
    "vqav2": {"train": (5, 35), "val": (5, 35), "test": (5, 35)},
    "nlvr2": {"train": (9, 0), "val": (9, 0), "test": (15, 0)},
    "coco": {"train": (12, 0), "val": (6, 0), "test": (5, 0)},
    "flickr30k": {"train": (12, 0), "val": (6, 0), "test": (5, 0)},
    "imagenet": {"train": (9, 0), "val": (9, 0), "test": (9, 0)},
}


@pytest.fixture
def fitted(tmp_path_factory):
    """fitted(name) -> a `Project` with a checkpoint."""
    return lambda name: official_runs.fitted(tmp_path_factory.getbasetemp(), name)


@pytest.mark.parametrize("name", ROWS)
def test_the_card_has_the_numbers_of_the_published_files(fitted, name):
    card = fitted(name).card
    splits = card["splits"].items()
    counts = {split: (about["samples"], about["questions"]) for split, about in splits}
    assert counts == ROWS[name]
    assert card["skipped"] == []


def same(found: dict[str, float], expected: dict[str, float]) -> None:
    """Some of the figures found, to the rounding of float32."""
    for name, value in expected.items():
        assert isclose(found[f"test/{name}"], value, abs_tol=1e-6), name


def published(path: Path) -> Any:
    return json.loads(path.read_text())


def official_accuracy(answer: str, people: list[str]) -> float:
    """Of an answer and ten people's; what the fixture needs normalised are numbers."""
    people = [{"two": "2"}.get(person, person) for person in people]
    scores = []
    for left_out in range(10):
        others = people[:left_out] + people[left_out + 1 :]
        scores.append(min(1, others.count(answer) / 3))
    return sum(scores) / 10


def test_vqav2_reports_what_the_official_program_would_of_the_file(fitted):
    project = fitted("vqav2")
    project.test()
    found = project.figures
    results = published(project.predict("val"))
    vocabulary = published(project.data / "answers.json")
    assert all(
        type(row["question_id"]) is int and row.keys() == {"question_id", "answer"}
        for row in results
    )
    assert len({row["answer"] for row in results}) > 1
    assert {row["answer"] for row in results} <= set(vocabulary)
    annotations = published(project.raw / "v2_mscoco_val2014_annotations.json")["annotations"]
    assert sorted(row["question_id"] for row in results) == sorted(
        a["question_id"] for a in annotations
    )

    answers = {row["question_id"]: row["answer"] for row in results}
    scores = defaultdict(list)
    for entry in annotations:
        people = [person["answer"] for person in entry["answers"]]
        score = official_accuracy(answers[entry["question_id"]], people)
        for group in (
            "accuracy",
            f"answer_type/{entry['answer_type']}",
            f"question_type/{entry['question_type']}",
        ):
            scores[group].append(score)
    assert len(scores) == 1 + 3 + 4
    same(found, {name: sum(every) / len(every) for name, every in scores.items()})
    assert 0 < found["test/accuracy"] < 1


def test_vqav2_answers_every_question_of_a_test_that_has_no_annotations(fitted):
    project = fitted("vqav2")
    results = published(project.predict("test"))
    asked = published(project.raw / "v2_OpenEnded_mscoco_test2015_questions.json")["questions"]
    assert sorted(row["question_id"] for row in results) == sorted(q["question_id"] for q in asked)
    assert {row["answer"] for row in results} <= set(published(project.data / "answers.json"))


def test_visual_genome_adds_to_what_vqav2_trains_on(tmp_path):
    project = Project(tmp_path, "vqav2")
    project.build()
    path = official.visual_genome(project.folder / "vg", count=5)
    answers = official.write_json(project.folder / "data/answers.json", ["net", "2", "on wall"])
    arguments = ["vg-qa", str(path), str(path.parent), "--answers", str(answers)]
    out = project.folder / "vg_qa"
    assert build_shards([*arguments, "--val-share", "0", "--out", str(out)]) == 0
    # Of VQAv2's 35 questions 14 have an answer of this list; Visual Genome adds 15 to them.
    both = ("--data.train.shards", '["data/train", "vg_qa/train"]')
    project.fit(*both, "--data.train.batch_size", str(14 + 15))


def test_nlvr2_reports_what_the_official_program_would_of_the_file(fitted):
    project = fitted("nlvr2")
    project.test()
    found = project.figures
    with project.predict("test").open(newline="") as file:
        rows = list(csv.reader(file))
    lines = (project.raw / "test1.json").read_text().splitlines()
    labels = {entry["identifier"]: entry["label"] for entry in map(json.loads, lines)}
    assert sorted(identifier for identifier, _ in rows) == sorted(labels)
    assert {label for _, label in rows} <= {"True", "False"}

    right = {identifier: label == labels[identifier] for identifier, label in rows}
    sentences = defaultdict(list)
    for identifier, is_right in right.items():
        split, group, _pair, sentence = identifier.split("-")
        sentences[split, group, sentence].append(is_right)
    consistent = [all(every) for every in sentences.values()]
    assert len(consistent) == 10
    expected = {
        "accuracy": sum(right.values()) / len(right),
        "consistency": sum(consistent) / len(consistent),
    }
    same(found, expected)
    assert found["test/consistency"] <= found["test/accuracy"]
    assert 0 < found["test/accuracy"] < 1


def test_coco_captions_reports_the_scores_of_the_captions_in_the_file(fitted):
    project = fitted("coco")
    project.test()
    found = project.figures
    results = published(project.predict("test"))
    images = published(project.raw / "dataset_coco.json")["images"]
    references = {
        image["cocoid"]: [sentence["raw"] for sentence in image["sentences"]]
        for image in images
        if image["split"] == "test"
    }
    assert sorted(row["image_id"] for row in results) == sorted(references)
    assert all(row.keys() == {"image_id", "caption"} for row in results)
    assert all(type(row["image_id"]) is int and type(row["caption"]) is str for row in results)
    assert all(row["caption"] for row in results)
    assert len({row["caption"] for row in results}) > 1

    scores = CaptionScores()
    ids = [row["image_id"] for row in results]
    captions = [row["caption"] for row in results]
    scores.update(captions, [references[id] for id in ids], [str(id) for id in ids])
    expected = {name: value.item() for name, value in scores.compute().items()}
    same(found, expected)
    assert expected.keys() >= {"bleu_1", "bleu_4", "rouge_l", "cider_d"}
    assert 0 < found["test/bleu_1"] < 1


def test_flickr30k_reports_the_recalls_of_the_vectors_in_the_file(fitted):
    project = fitted("flickr30k")
    project.test()
    found = project.figures
    vectors = load_file(project.predict("test"))
    images = published(project.raw / "dataset_flickr30k.json")["images"]
    sizes = [len(image["sentences"]) for image in images if image["split"] == "test"]
    image, text, owner = vectors["image"], vectors["text"], vectors["text_image_id"]
    assert (len(image), len(text)) == (len(sizes), sum(sizes))

    right = owner[:, None] == vectors["image_id"]
    score = text.double() @ image.double().T
    expected = {}
    for k in (1, 5, 10):
        first = score.topk(min(k, len(image)), dim=1).indices
        expected[f"text_to_image_recall_at_{k}"] = right.gather(1, first).any(dim=1)
        first = score.T.topk(min(k, len(text)), dim=1).indices
        expected[f"image_to_text_recall_at_{k}"] = right.T.gather(1, first).any(dim=1)
    expected = {name: hit.double().mean().item() for name, hit in expected.items()}
    expected["mean_recall"] = sum(expected.values()) / 6
    same(found, expected)
    assert 0 < found["test/mean_recall"] < 1


def test_imagenet_reports_the_accuracy_of_the_classes_in_the_file(fitted):
    project = fitted("imagenet")
    project.test()
    found = project.figures
    with project.predict("test").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["name"] for row in rows} <= {"n01", "n02", "n13"}
    folders = [sample["class"] for sample in samples_in(project.data / "test")]
    right = [row["name"] == folder for row, folder in zip(rows, folders, strict=True)]
    same(found, {"class_accuracy": sum(right) / len(right)})
