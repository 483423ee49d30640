"""Visual question answering: its loss, its scores, and the answers that travel with the weights."""

import json

import pytest
import torch

from mhmoe_mm.tasks.vqa import VQA, read_answers
from tests.tasks.batches import questions, small_net
from tests.tasks.training import FAST, predict, rows, same_weights, train, validate

ANSWERS = ["red", "blue", "2", "yes", "no", "left", "a dog"]


def task(seed=0, **options) -> VQA:
    torch.manual_seed(seed)
    return VQA(small_net(), **({"answers": ANSWERS} | FAST | options))


def annotation_file(path, ids, answer="red"):
    people = [{"answer": answer} for _ in range(10)]
    entries = [
        {"question_id": i, "answers": people, "question_type": "what", "answer_type": "other"}
        for i in ids
    ]
    path.write_text(json.dumps({"annotations": entries}))
    return str(path)


def test_the_loss_is_the_binary_cross_entropy_of_every_answer_added_up():
    model, batch = task(), questions(5)
    prediction = model.losses(batch).predictions["answer"]
    logits = model.scores(batch)[0]
    total = 0.0
    for row in range(5):
        for answer in range(7):
            probability = logits[row, answer].sigmoid().item()
            target = batch.target[row, answer].item()
            total -= target * torch.tensor(probability).log().item()
            total -= (1 - target) * torch.tensor(1 - probability).log().item()
    assert prediction.loss.item() == pytest.approx(total / 5, rel=1e-4)


def test_training_finds_the_answers():
    model, batch = task(), questions(11)
    assert validate(model, batch)["val/accuracy"] < 0.5
    train(model, [batch] * 80)
    assert validate(model, batch)["val/accuracy"] == 1.0


def test_rows_that_fill_up_a_batch_change_no_figure():
    model, whole = task(), questions(5)
    filled = questions(8)._replace(valid=torch.arange(8) < 5)
    parts = [rows(filled, 0, 4), rows(filled, 4, 8)]
    expected = validate(model, rows(questions(8), 0, 5))
    for name, value in validate(model, *parts).items():
        assert value == pytest.approx(expected[name], rel=1e-5), name
    assert validate(model, whole).keys() == expected.keys()


def test_predictions_name_every_question_once_with_its_likeliest_answer():
    model, batch = task(), questions(5)._replace(valid=torch.arange(5) < 4)
    chosen = model.scores(batch)[0].argmax(dim=1).tolist()
    (found,) = predict(model, batch)
    assert found == [{"question_id": 100 + i, "answer": ANSWERS[chosen[i]]} for i in range(4)]


def test_with_annotations_the_accuracy_is_the_official_one(tmp_path):
    model = task(annotations=[annotation_file(tmp_path / "a.json", range(100, 105))])
    batch = questions(5)
    chosen = model.scores(batch)[0].argmax(dim=1)
    result = validate(model, batch)
    assert result["val/accuracy"] == pytest.approx((chosen == 0).float().mean().item())
    assert "val/question_type/what" in result


def test_a_question_without_annotation_is_refused(tmp_path):
    model = task(annotations=[annotation_file(tmp_path / "a.json", range(100, 103))])
    with pytest.raises(ValueError, match="2 questions have no annotation, such as 103"):
        validate(model, questions(5))


def test_a_saved_task_loads_with_its_weights_and_answers(tmp_path):
    model = task()
    train(model, [questions(5)] * 2).save_checkpoint(tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["answers"] == ANSWERS
    again = VQA.load_from_checkpoint(
        tmp_path / "a.ckpt", net=small_net(), answers=ANSWERS, weights_only=True
    )
    assert same_weights(model, again)


@pytest.mark.parametrize(
    ("other", "place"), [([*ANSWERS[:4], "up", "no", "a dog"], 4), (["red"], 1)]
)
def test_a_checkpoint_with_other_answers_is_refused(tmp_path, other, place):
    model = task()
    train(model, [questions(5)]).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises((ValueError, RuntimeError), match=f"first differ at number {place}"):
        VQA.load_from_checkpoint(tmp_path / "a.ckpt", net=small_net(), answers=other)


def test_data_of_another_vocabulary_are_refused():
    with pytest.raises(ValueError, match="The data score 11 answers, but the task knows 7"):
        task().losses(questions(3, answers=11))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ('{"a": 1}', "is not a JSON list of strings"),
        ('["a", "b", "a"]', "3 answers, 2 of them different"),
        ("[]", "0 answers"),
    ],
)
def test_a_broken_list_of_answers_is_refused(tmp_path, content, why):
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(ValueError, match=why):
        read_answers(str(tmp_path / "answers.json"))


def test_a_missing_list_of_answers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no list of answers at"):
        task(answers=str(tmp_path / "no.json"))
