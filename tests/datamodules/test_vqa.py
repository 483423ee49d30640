"""Questions as rows: targets, what is left out, and the vocabulary that the model must share."""

import json
from types import SimpleNamespace

import pytest
import torch

from datamodules.answers import NameList
from datamodules.fine_tuning import FineTuningDataModule
from datamodules.loading import Loading
from datamodules.sources import Source
from datamodules.transforms import View
from datamodules.vqa import VqaSamples
from tests.datamodules.task_shards import ANSWERS, question

TEN = ["red"] * 5 + ["two"] * 2 + ["no"] + ["crimson"] * 2


@pytest.fixture
def make_module(make_shards, tokenizer_path, tmp_path):
    """make_module(questions, split) -> a module over one sample with these questions."""
    (tmp_path / "answers.json").write_text(json.dumps(ANSWERS))

    def make(questions):
        def change(number, content):
            about = {"id": "image", "qa": questions}
            return {"png": content["png"], "json": json.dumps(about).encode()}

        source = Source(str(make_shards([1], change=change)), batch_size=1)
        task = VqaSamples(str(tmp_path / "answers.json"))
        loading = Loading(threads=0)
        view = View(size=16, patch=8)
        return FineTuningDataModule(
            source, task, tokenizer_path, val=source, view=view, loading=loading
        )

    return make


def targets(loader):
    return torch.cat([batch.target[batch.valid] for batch in loader])


def test_answers_that_more_people_gave_score_more(make_module):
    module = make_module([question(0, TEN)])
    expected = [[0.0, 0.3, 1.0, 0.6, 0.0]]
    assert torch.allclose(targets(module.training_loader()), torch.tensor(expected))


@pytest.mark.parametrize("count", range(1, 11))
def test_a_score_is_the_official_accuracy(make_module, count):
    answers = ["red"] * count + [f"other {n}" for n in range(10 - count)]
    score = targets(make_module([question(0, answers)]).training_loader())[0, 2]
    # Leave one out, ten times: the other nine must hold the answer three times for a full point.
    left = [answers[:i] + answers[i + 1 :] for i in range(10)]
    accuracy = sum(min(1.0, nine.count("red") / 3) for nine in left) / 10
    assert score.item() == pytest.approx(accuracy)


def test_a_single_answer_counts_fully(make_module):
    scores = targets(make_module([question(0, ["green"])]).training_loader())
    assert scores.tolist() == [[0, 0, 0, 0, 1]]


def test_unknown_answers_are_left_out_of_training_and_kept_in_evaluation(make_module, caplog):
    module = make_module([question(0, ["red"]), question(1, ["purple"]), question(2, None)])
    (batch,) = module.training_loader()
    assert batch.question_id == [1000]
    assert "train: 2 of 3 rows are left out" in caplog.text
    rows = list(module.evaluation_loader("val"))
    assert [batch.question_id for batch in rows] == [[1000], [1001], [1002]]
    assert targets(rows).sum(dim=1).tolist() == [1, 0, 0]


def test_questions_without_an_id_are_named_by_image_and_place(make_module):
    qa = [{"question": "is it", "answer": "yes"}, {"question": "is it not", "answer": "no"}]
    rows = make_module(qa).evaluation_loader("val")
    assert [batch.question_id for batch in rows] == [["image#0"], ["image#1"]]


def test_a_question_is_tokenized_whole(make_module, tokenizer_path):
    module = make_module([question(3, ["yes"])])
    (batch,) = module.training_loader()
    tokens = batch.token[0][~batch.pad[0]].tolist()
    assert tokens == module.tokenizer.encode(question(3, None)["question"], 64)


@pytest.mark.parametrize(
    "qa", [{}, {"question": ""}, {"question": "a", "answers": [3]}, {"question": "a", "answer": 3}]
)
def test_a_broken_question_is_named(make_module, qa):
    with pytest.raises(ValueError, match=r"000000000\.json has no usable question in qa\[1\]"):
        make_module([question(0, ["yes"]), qa]).setup("fit")


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (["yes", "no"], r"answers\.json has 5 answers, the model has 2: give both the same list"),
        (["no", "yes", *ANSWERS[2:]], r"other answers than the model: number 0 is 'yes' here"),
    ],
)
def test_another_vocabulary_than_the_models_is_refused_at_setup(make_module, known, sentence):
    module = make_module([question(0, ["yes"])])
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(answers=known))
    with pytest.raises(ValueError, match=sentence):
        module.setup("fit")


def test_another_number_of_classes_than_the_models_is_refused(tmp_path):
    (tmp_path / "classes.json").write_text('["a", "b", "c"]')
    names = NameList(tmp_path / "classes.json", "classes")
    names.check_model(SimpleNamespace(num_classes=3))
    with pytest.raises(ValueError, match="has 3 classes, the model has 4"):
        names.check_model(SimpleNamespace(num_classes=4))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read .* writes answers.json beside the card"),
        ("{", "is not JSON"),
        ('{"a": 0}', "not a JSON list of answers"),
        ('["a", 3]', "not a JSON list of answers"),
        ('["a", "b", "a"]', r"once; twice: \['a'\]"),
        ("[]", "once; twice: none"),
    ],
)
def test_a_bad_vocabulary_is_named(tmp_path, content, sentence):
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        NameList(path, "answers")


def test_all_questions_of_an_image_share_its_pixels_in_evaluation(make_module):
    rows = list(make_module([question(n, ["yes"]) for n in range(3)]).evaluation_loader("val"))
    assert all(torch.equal(batch.pixel, rows[0].pixel) for batch in rows)
    assert len({tuple(batch.token[0].tolist()) for batch in rows}) == 3
