"""The formats that the official programs read, to the letter."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mhmoe_mm.prediction_files import CsvWithHeader, ImageTextVectors, JsonList, PlainCsv
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA


def test_answers_are_a_json_list_whose_ids_are_numbers_where_they_can_be(tmp_path: Path):
    rows = [
        {"question_id": "262148000", "answer": "yes"},
        {"question_id": 7, "answer": "grün\n"},
        {"question_id": "image-3#1", "answer": ""},
        {"question_id": "²", "answer": "2"},
    ]
    JsonList("a.json", unique="question_id").write(rows, tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == [{**rows[0], "question_id": 262148000}, *rows[1:]]
    assert text.splitlines()[1] == '{"question_id": 262148000, "answer": "yes"},'
    assert len(text.splitlines()) == len(rows) + 2


def test_ids_that_would_be_alike_in_the_file_are_alike():
    file = JsonList("a.json", unique="image_id")
    ids = [file.id_of({"image_id": name}) for name in ("000000000139", 139, "139", "139a")]
    assert ids == [139, 139, 139, "139a"]


def test_judgements_of_sentences_are_lines_without_a_header(tmp_path: Path):
    rows = [
        {"identifier": "test1-0-1-0", "label": "True"},
        {"identifier": "test1-0-1-1", "label": "False"},
    ]
    PlainCsv("a.csv", unique="identifier").write(rows, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == b"test1-0-1-0,True\ntest1-0-1-1,False\n"


def test_classes_have_a_header_and_names_with_commas_survive(tmp_path: Path):
    rows = [{"key": "00000.tar/1", "class": 3, "name": 'tench, "Tinca"'}]
    CsvWithHeader("a.csv", unique="key").write(rows, tmp_path / "a.csv")
    text = (tmp_path / "a.csv").read_text()
    assert text.startswith("key,class,name\n")
    (read,) = csv.DictReader(text.splitlines())
    assert read == {"key": "00000.tar/1", "class": "3", "name": 'tench, "Tinca"'}


def test_an_image_comes_once_and_every_text_knows_its_own(tmp_path: Path):
    image, text = torch.randn(3, 5), torch.randn(7, 5)
    of = [4, 4, 9, 2, 9, 4, 2]
    rows = [
        {"image": image[[4, 9, 2].index(i)], "text": text[n], "image_id": i, "key": f"shard/ü{i}"}
        for n, i in enumerate(of)
    ]
    ImageTextVectors("a.safetensors", unique=None).write(rows, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("image"), image)
        assert file.get_tensor("image_id").tolist() == [4, 9, 2]
        assert torch.equal(file.get_tensor("text"), text)
        assert file.get_tensor("text_image_id").tolist() == of
        assert json.loads(file.metadata()["image_key"]) == ["shard/ü4", "shard/ü9", "shard/ü2"]


@pytest.mark.parametrize(
    ("task", "name", "unique"),
    [
        (VQA, "predictions.json", "question_id"),
        (Captioning, "predictions.json", "image_id"),
        (NLVR2, "predictions.csv", "identifier"),
        (ImageClassification, "predictions.csv", "key"),
        (Retrieval, "predictions.safetensors", None),
    ],
)
def test_a_task_names_its_file_and_what_may_come_once(task, name: str, unique: str | None):
    file = task.prediction_file
    assert file is not None
    assert (file.name, file.unique) == (name, unique)
    row = {"question_id": 3, "image_id": 3, "identifier": 3, "key": 3}
    assert file.id_of(row) == (3 if unique else None)
