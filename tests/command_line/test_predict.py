"""`predict` ends in the file that an official server takes, also when it was interrupted."""

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mhmoe_mm.command_line.weights import sha256
from mhmoe_mm.tasks.vqa import VQA
from tests.command_line.conftest import Outcome
from tests.evaluated import damaged
from tests.ranks import run_on_two_ranks
from tests.trained import CLASSES, Trained

Evaluated = Callable[..., Outcome]


@pytest.fixture
def predict(evaluated: Evaluated, trained: Callable[[str], Trained]) -> Evaluated:
    """predict("vqa", ...) with its checkpoint."""

    def call(name: str, *options: str) -> Outcome:
        return evaluated("predict", name, "--ckpt_path", str(trained(name).checkpoint), *options)

    return call


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The questions of each forward of a VQA model."""
    seen: list[list[int]] = []
    original = VQA.predict

    def counted(task: VQA, batch: Any) -> list[dict[str, Any]]:
        seen.append(list(batch.question_id))
        return original(task, batch)

    monkeypatch.setattr(VQA, "predict", counted)
    return seen


@pytest.fixture
def stopped(
    forwards: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int, Callable[[], None]], None]]:
    """stopped(3, act) lets `act` happen in the forward of batch 3, once."""
    handler = signal.getsignal(signal.SIGINT)
    counted = VQA.predict

    def at(batch: int, act: Callable[[], None]) -> None:
        def predict(task: VQA, content: Any) -> list[dict[str, Any]]:
            if len(forwards) == batch:
                monkeypatch.setattr(VQA, "predict", counted)
                act()
            return counted(task, content)

        monkeypatch.setattr(VQA, "predict", predict)

    yield at
    signal.signal(signal.SIGINT, handler)  # Lightning has it ignored from the first on


def only(folder: Path, name: str) -> Path:
    """The one file of this name under the folder."""
    (path,) = folder.rglob(name)
    return path


def asked(trained: Trained, field: str, name: str) -> list[Any]:
    """What the data ask, in their order."""
    return [
        row[name]
        for key in trained.samples
        for row in json.loads(trained.samples[key]["json"])[field]
    ]


# -- the formats --------------------------------------------------------------------------------


def test_vqa_answers_every_question_once(predict: Evaluated, trained, tmp_path: Path):
    outcome = predict("vqa")
    assert outcome.status == 0
    path = only(tmp_path, "predictions.json")
    assert outcome.out.splitlines()[-1] == (
        "16 predictions are in runs/unnamed/version_0/predictions.json"
    )
    content = json.loads(path.read_text())
    assert [{name: type(x) for name, x in row.items()} for row in content] == [
        {"question_id": int, "answer": str}
    ] * 16
    assert [row["question_id"] for row in content] == asked(trained("vqa"), "qa", "question_id")
    assert {row["answer"] for row in content} <= set(trained("vqa").task().answers)
    assert not list(tmp_path.rglob("*.part")) + list(tmp_path.rglob("*.partial"))


def test_nlvr2_judges_every_sentence_on_a_line(predict: Evaluated, trained, tmp_path: Path):
    assert predict("nlvr2").status == 0
    lines = only(tmp_path, "predictions.csv").read_text().splitlines()
    identifiers = asked(trained("nlvr2"), "statements", "identifier")
    assert [line.split(",")[0] for line in lines] == identifiers
    assert {line.split(",")[1] for line in lines} <= {"True", "False"}


def test_captions_are_for_every_image_once(predict: Evaluated, trained, tmp_path: Path):
    assert predict("captioning").status == 0
    content = json.loads(only(tmp_path, "predictions.json").read_text())
    samples = trained("captioning").samples.values()
    assert [row["image_id"] for row in content] == [
        json.loads(sample["json"])["image_id"] for sample in samples
    ]
    assert all(row.keys() == {"image_id", "caption"} for row in content)
    assert all(isinstance(row["caption"], str) for row in content)


def test_classes_have_names(predict: Evaluated, trained, tmp_path: Path):
    assert predict("classification").status == 0
    rows = list(csv.DictReader(only(tmp_path, "predictions.csv").open()))
    assert [row["key"] for row in rows] == [
        f"00000.tar/{key}" for key in trained("classification").samples
    ]
    assert all(row["name"] == CLASSES[int(row["class"])] for row in rows)


def test_vectors_are_of_every_image_and_text(predict: Evaluated, trained, tmp_path: Path):
    assert predict("retrieval").status == 0
    samples = trained("retrieval").samples.values()
    with safe_open(only(tmp_path, "predictions.safetensors"), "pt") as file:
        image, text = file.get_tensor("image"), file.get_tensor("text")
        of = file.get_tensor("text_image_id")
        assert file.get_tensor("image_id").unique().numel() == len(image) == len(samples)
    assert len(text) == len(of) == sum(len(sample["txt"].splitlines()) for sample in samples)
    assert image.norm(dim=1).allclose(text.norm(dim=1)[:1])


# -- interruptions ------------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("act", "status", "done"), [(interrupt, 1, 3), (terminate, 143, 4)], ids=["Ctrl-C", "SIGTERM"]
)
def test_the_same_command_goes_on_to_the_same_bytes(
    predict: Evaluated, forwards, stopped, said, tmp_path: Path,
    act: Callable[[], None], status: int, done: int,
):  # fmt: skip
    assert predict("vqa", "--predictions", "whole").status == 0
    every = forwards.copy()
    assert len(every) == 6
    forwards.clear()
    stopped(3, act)
    with pytest.raises(SystemExit) as ended:
        predict("vqa")
    assert ended.value.code == status
    assert "runs/unnamed/version_0` goes on" in said.text
    assert f"{3 * done} of 16 rows are safe" in said.text
    forwards.clear()
    assert predict("vqa", "--predictions", "runs/unnamed/version_0").status == 0
    assert forwards == every[done:]
    whole = (tmp_path / "whole/predictions.json").read_bytes()
    assert (tmp_path / "runs/unnamed/version_0/predictions.json").read_bytes() == whole
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", ["retrieval", "captioning"])
def test_what_was_kept_is_the_same_to_the_bit(predict: Evaluated, tmp_path: Path, name: str):
    assert predict(name, "--predictions", "whole").status == 0
    assert predict(name, "--predictions", "parts", "--trainer.limit_predict_batches=1").status == 0
    assert predict(name, "--predictions", "parts").status == 0
    (whole,) = (tmp_path / "whole").glob("predictions.*")
    assert (tmp_path / "parts" / whole.name).read_bytes() == whole.read_bytes()


def test_a_limit_leaves_the_rest_for_later(predict: Evaluated, forwards, tmp_path: Path):
    outcome = predict("vqa", "--predictions", "some", "--trainer.limit_predict_batches", "2")
    assert outcome.status == 0
    assert "10 of 16 rows are left" in outcome.out
    assert not (tmp_path / "some/predictions.json").exists()


# -- refusals -----------------------------------------------------------------------------------


def refused(outcome: Outcome) -> str:
    assert outcome.status == 2
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("mhmoe-mm: error: ")]
    return line.removeprefix("mhmoe-mm: error: ")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_weights_that_were_never_trained_predict_nothing(evaluated: Evaluated, tmp_path: Path):
    assert "give a checkpoint of the task with `--ckpt_path FILE`" in refused(
        evaluated("predict", "vqa")
    )
    assert files(tmp_path).keys() == {"evaluation.yaml"}


def test_weights_alone_predict_the_same(
    predict: Evaluated, evaluated: Evaluated, trained, tmp_path: Path
):
    assert predict("vqa", "--predictions", "a").status == 0
    options = ["--predictions", "b", "--model.init_from", str(trained("vqa").checkpoint)]
    assert evaluated("predict", "vqa", *options).status == 0
    answers = [(tmp_path / name / "predictions.json").read_bytes() for name in "ab"]
    assert answers[0] == answers[1]


def test_a_head_that_was_never_trained_predicts_nothing(
    evaluated: Evaluated, trained, tmp_path: Path
):
    weights = torch.load(trained("vqa").checkpoint, weights_only=True)["state_dict"]
    net = {name: value for name, value in weights.items() if name.startswith("net.")}
    save_file(net, tmp_path / "net.safetensors")
    lacking = sorted(weights.keys() - net.keys())
    said = refused(evaluated("predict", "vqa", "--model.init_from", "net.safetensors"))
    assert f"(1 of {len(lacking)}) is not among those that the model starts from" in said
    assert any(said.startswith(f"Predictions need all weights, and {name} ") for name in lacking)
    assert not (tmp_path / "runs").exists()


def begin(predict: Evaluated, folder: Path) -> dict[str, bytes]:
    """Predict a part of the answers into DIR; what lies there."""
    options = ["--predictions", "DIR", "--trainer.limit_predict_batches", "2"]
    assert predict("vqa", *options).status == 0
    return files(folder / "DIR")


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (
            ["--model.net.layout.sparse.router.top_k", "1", "--net_changes", "true"],
            "model.net.layout.sparse.router.top_k: 2 there, 1 here",
        ),
        (["--data.test.max_tokens", "7"], "data.test.max_tokens: 9 there, 7 here"),
        (
            ["--trainer.precision", "bf16-mixed"],
            "trainer.precision: '32-true' there, 'bf16-mixed' here",
        ),
    ],
    ids=["model", "data", "precision"],
)
def test_another_configuration_does_not_go_on(
    predict: Evaluated, tmp_path: Path, options: list[str], difference: str
):
    before = begin(predict, tmp_path)
    assert refused(predict("vqa", "--predictions", "DIR", *options)) == (
        f"DIR/predictions.partial holds predictions of something else ({difference}): choose "
        "another folder with `--predictions DIR`, or remove it to start over."
    )
    assert files(tmp_path / "DIR") == before


def altered(checkpoint: Path, path: Path) -> Path:
    """The same checkpoint with one weight changed."""
    content = torch.load(checkpoint, weights_only=True)
    next(iter(content["state_dict"].values())).add_(1.0)
    torch.save(content, path)
    return path


def test_another_checkpoint_does_not_go_on(predict: Evaluated, trained, tmp_path: Path):
    before = begin(predict, tmp_path)
    first = trained("vqa").checkpoint
    other = altered(first, tmp_path / "other.ckpt")
    said = refused(predict("vqa", "--predictions", "DIR", "--ckpt_path", str(other)))
    assert f"(weights (sha256): '{sha256(first)}' there, '{sha256(other)}' here)" in said
    assert files(tmp_path / "DIR") == before


def test_what_only_changes_the_speed_goes_on(predict: Evaluated, forwards, tmp_path: Path):
    begin(predict, tmp_path)
    forwards.clear()
    options = ["--data.loading.threads", "0", "--data.test.batch_size", "5"]
    assert predict("vqa", "--predictions", "DIR", *options).status == 0
    assert len(forwards) == 3  # rows 6 to 15 of batches that begin at 0, 5, 10 and 15
    assert len(json.loads((tmp_path / "DIR/predictions.json").read_text())) == 16


def test_a_finished_file_is_refused_and_left_alone(predict: Evaluated, tmp_path: Path):
    assert predict("vqa", "--predictions", "DIR").status == 0
    before = files(tmp_path / "DIR")
    said = refused(predict("vqa", "--predictions", "DIR"))
    assert said.startswith("DIR/predictions.json is there already")
    assert files(tmp_path / "DIR") == before


def test_without_a_logger_a_folder_must_be_named(predict: Evaluated, tmp_path: Path):
    said = refused(predict("vqa", "--trainer.logger", "false"))
    assert said.startswith("Without a logger a run has no folder for its predictions")
    assert predict("vqa", "--trainer.logger", "false", "--predictions", "DIR").status == 0
    assert (tmp_path / "DIR/predictions.json").exists()


def test_a_prediction_of_nothing_is_refused_and_leaves_nothing(predict: Evaluated, tmp_path: Path):
    said = refused(predict("vqa", "--data.test", "null", "--predictions", "new/DIR"))
    assert said.startswith("There is nothing to predict: the data have no rows for it (data.test)")
    assert not (tmp_path / "new").exists()


def test_predictions_beside_a_training_leave_its_files_alone(
    predict: Evaluated, trained, tmp_path: Path
):
    run = tmp_path / "training"
    run.mkdir()
    for name in ("metrics.csv", "hparams.yaml"):
        (run / name).write_bytes((trained("vqa").run / name).read_bytes())
    before = files(run)
    assert predict("vqa", "--predictions", "training").status == 0
    assert {name: files(run)[name] for name in before} == before


# -- damage -------------------------------------------------------------------------------------


def test_a_damaged_image_is_counted_and_named(predict: Evaluated, trained, tmp_path: Path):
    shards = damaged(trained("vqa"), tmp_path / "damaged", 2)
    options = ["--data.test.shards", str(shards), "--data.limits.max_errors", "1"]
    outcome = predict("vqa", "--predictions", "DIR", *options)
    assert outcome.status == 0
    every = asked(trained("vqa"), "qa", "question_id")
    lost = [number for number in every if number // 10 == 2]
    assert len(lost) == 3
    content = json.loads((tmp_path / "DIR/predictions.json").read_text())
    assert [row["question_id"] for row in content] == [n for n in every if n not in lost]
    assert json.loads((tmp_path / "DIR/predictions.missing.json").read_text()) == {
        "rows": [every.index(number) for number in lost],
        "samples": {f"{shards}/00000.tar/000000002": "decode"},
    }
    assert (
        "3 of 16 rows are not predicted, for 1 samples could not be read: "
        "DIR/predictions.missing.json names them"
    ) in outcome.out


# -- two ranks ----------------------------------------------------------------------------------


@pytest.mark.dist
def test_two_ranks_write_the_bytes_of_one(predict: Evaluated, evaluated, trained, tmp_path: Path):
    checkpoint = ["--ckpt_path", str(trained("nlvr2").checkpoint)]
    shards = damaged(trained("nlvr2"), tmp_path / "damaged", 4)
    hurt = ["--data.test.shards", str(shards), "--data.limits.max_errors", "1"]
    config = ["--config", "evaluation.yaml", *checkpoint, "--trainer.devices"]
    limit = ["--trainer.limit_predict_batches", "1"]
    assert len(asked(trained("nlvr2"), "statements", "identifier")) == 13  # odd

    assert predict("nlvr2", "--predictions", "one").status == 0
    assert predict("nlvr2", "--predictions", "hurt_one", *hurt).status == 0
    assert predict("nlvr2", "--predictions", "one_then_two", *limit).status == 0
    assert evaluated("test", "nlvr2", *checkpoint, *hurt, "--name", "one").status == 0
    commands = [
        ["predict", *config, "2", "--predictions", "one_then_two"],
        ["predict", *config, "2", "--predictions", "two_then_one", *limit],
        ["predict", *config, "2", "--predictions", "hurt_two", *hurt],
        ["test", *config, "2", *hurt, "--name", "two"],
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    run_on_two_ranks("tests.command_line.two_ranks", tmp_path, limit_s=480)
    assert predict("nlvr2", "--predictions", "two_then_one").status == 0

    def content(name: str) -> bytes:
        return (tmp_path / name).read_bytes()

    for other in ("one_then_two", "two_then_one"):
        assert content(f"{other}/predictions.csv") == content("one/predictions.csv"), other
    for name in ("predictions.csv", "predictions.missing.json"):
        assert content(f"hurt_two/{name}") == content(f"hurt_one/{name}"), name
    one, two = (json.loads(content(f"runs/{n}/version_0/test.json")) for n in ("one", "two"))
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert (two["skipped"], two["checkpoint"]) == (one["skipped"], one["checkpoint"])
