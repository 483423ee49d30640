"""VQA accuracy as the official program counts it, and soft scores."""

import json
from pathlib import Path

import pytest
import torch

from mhmoe_mm.metrics.vqa_accuracy import (
    Annotation,
    SoftScore,
    VqaAccuracy,
    answer_accuracy,
    read_annotations,
)
from mhmoe_mm.metrics.vqa_answers import normalized

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vqa_nlvr2.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["normalise"], ids=lambda case: case["raw"])
def test_answers_are_normalized_as_by_the_official_program(case):
    assert normalized(case["raw"]) == case["official"]


@pytest.mark.parametrize("text", ["yes.", "it wasn't the dog", "11:20", "what's up", "2.5"])
def test_a_normalized_answer_stays_as_it_is(text):
    assert normalized(normalized(text)) == normalized(text)


def test_no_more_than_32_full_stops_are_removed():
    assert normalized("a. " * 40) == " ".join(["a."] * 8)


def test_a_comma_between_digits_makes_all_marks_vanish():
    assert normalized("t-shirt 1,5") == "tshirt 15"
    assert normalized("t-shirt 1.5") == "t shirt 1.5"


@pytest.mark.parametrize(
    "case", GOLDEN["vqa_cases"], ids=lambda c: f"{c['pred']} of {len(set(c['answers']))}"
)
def test_answers_score_as_by_the_official_program(case):
    score = answer_accuracy(case["pred"], tuple(case["answers"]))
    assert 100 * score == pytest.approx(case["acc"], abs=0.005)


def annotated(case, number):
    return Annotation(tuple(case["answers"]), f"kind {number % 3}", ("yes/no", "other")[number % 2])


def test_means_over_all_questions_and_over_each_type_are_those_of_single_answers():
    cases = GOLDEN["vqa_cases"]
    metric = VqaAccuracy()
    for start in range(0, len(cases), 7):
        part = cases[start : start + 7]
        metric.update(
            [case["pred"] for case in part],
            [annotated(case, start + i) for i, case in enumerate(part)],
            list(range(start, start + len(part))),
        )
    found = {name: round(100 * value.item(), 2) for name, value in metric.compute().items()}
    assert found["accuracy"] == GOLDEN["overall"]
    for kind in range(3):
        scores = [case["acc"] for case in cases[kind::3]]
        assert found[f"question_type/kind {kind}"] == round(sum(scores) / len(scores), 2)
    for kind, name in enumerate(("yes/no", "other")):
        scores = [case["acc"] for case in cases[kind::2]]
        assert found[f"answer_type/{name}"] == round(sum(scores) / len(scores), 2)


def test_rows_that_fill_up_a_batch_do_not_count():
    right, wrong = GOLDEN["vqa_cases"][0], GOLDEN["vqa_cases"][1]
    metric = VqaAccuracy()
    metric.update(
        [right["pred"], wrong["pred"]],
        [annotated(right, 0), annotated(wrong, 1)],
        ["3", "3"],
        torch.tensor([True, False]),
    )
    assert metric.compute() == {
        "accuracy": 1.0, "question_type/kind 0": 1.0, "answer_type/yes/no": 1.0
    }  # fmt: skip


def test_a_question_answered_twice_counts_once_and_is_reported():
    case = GOLDEN["vqa_cases"][0]
    metric = VqaAccuracy()
    metric.update([case["pred"], "no"], [annotated(case, 0)] * 2, [5, 5])
    with pytest.warns(UserWarning, match="1 of 2 evaluated samples"):
        assert metric.compute()["accuracy"] == 1.0


def test_too_few_people_are_refused():
    with pytest.raises(ValueError, match="but there are 1; where each"):
        answer_accuracy("yes", ("yes",))


def test_no_answers_are_no_figure():
    assert VqaAccuracy().compute() == {}
    assert SoftScore().compute() == {}


def test_annotations_are_read_from_the_official_format(tmp_path):
    entry = {
        "question_id": 262148000, "image_id": 262148, "multiple_choice_answer": "down",
        "question_type": "is the", "answer_type": "other",
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i}
                    for i, a in enumerate(["down", "at table"], 1)],
    }  # fmt: skip
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"annotations": [entry]}))
    assert read_annotations(file) == {
        "262148000": Annotation(("down", "at table"), "is the", "other")
    }
    file.write_text(json.dumps({"questions": []}))
    with pytest.raises(ValueError, match="not an annotation file"):
        read_annotations(file)


def test_soft_scores_are_those_of_the_largest_logits():
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(13, 5, generator=generator)
    target = torch.randint(0, 11, (13, 5), generator=generator) / 10
    valid = torch.arange(13) < 11
    slow = [target[i, max(range(5), key=lambda a, i=i: logits[i, a])].item() for i in range(11)]
    metric = SoftScore()
    for rows in torch.arange(13).split(3):
        metric.update(logits[rows], target[rows], valid[rows])
    assert metric.compute()["accuracy"].item() == pytest.approx(sum(slow) / 11, abs=1e-6)


def test_questions_without_known_answers_have_no_accuracy():
    metric = SoftScore()
    logits, target = torch.eye(3), torch.tensor([[0.0, 0.3, 0.0], [0.0] * 3, [0.0] * 3])
    metric.update(logits, target, torch.tensor([False, True, True]))
    with pytest.raises(ValueError, match="None of the 2 questions has an answer"):
        metric.compute()
    metric.update(logits, target)
    assert metric.compute()["accuracy"] == 0
