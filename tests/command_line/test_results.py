"""`validate` and `test` end in one table and one JSON file."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mhmoe_mm.command_line.results import figure, group_of, in_order
from mhmoe_mm.command_line.weights import sha256
from tests.evaluated import damaged


def written(folder: Path, command: str, version: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"runs/unnamed/version_{version}/{command}.json").read_text())


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_the_file_has_every_figure_as_it_was_logged(
    evaluated, trained, tmp_path: Path, command: str, stage: str
):
    checkpoint = trained("vqa").checkpoint
    assert evaluated(command, "vqa", "--ckpt_path", str(checkpoint)).status == 0
    content = written(tmp_path, command)
    (row,) = csv.DictReader((tmp_path / "runs/unnamed/version_0/metrics.csv").open())
    logged = {name: float(value) for name, value in row.items() if name.startswith(stage)}
    assert content["metrics"] == logged
    assert {f"{stage}/loss", f"{stage}/answer", f"{stage}/accuracy"} <= logged.keys()
    assert content["checkpoint"] == {"path": str(checkpoint), "sha256": sha256(checkpoint)}
    assert content["skipped"] == {}
    assert not list(tmp_path.rglob("*.part"))


def test_the_table_has_every_figure_once_and_says_where_the_file_is(
    evaluated, trained, tmp_path: Path
):
    outcome = evaluated("test", "vqa", "--ckpt_path", str(trained("vqa").checkpoint))
    lines = outcome.out.splitlines()
    metrics = written(tmp_path, "test")["metrics"]
    shown = [line.split() for line in lines if line.startswith("test/")]
    assert sorted(shown) == sorted([name, figure(value)] for name, value in metrics.items())
    names = [name for name, _ in shown]
    assert names.index("test/answer") < names.index("test/accuracy")  # objectives come first
    assert lines[-1] == "all digits are in runs/unnamed/version_0/test.json"


def test_figures_of_weights_that_were_never_trained_are_said_to_be(evaluated, trained, tmp_path):
    with pytest.warns(UserWarning, match="weights as they start"):
        assert evaluated("test", "nlvr2").status == 0
    assert written(tmp_path, "test")["checkpoint"] is None


def test_figures_of_a_head_that_was_never_trained_are_said_to_be(evaluated, trained, tmp_path):
    weights = torch.load(trained("nlvr2").checkpoint, weights_only=True)["state_dict"]
    net = {name: value for name, value in weights.items() if name.startswith("net.")}
    save_file(net, tmp_path / "net.safetensors")
    with pytest.warns(UserWarning, match=r"is not in net\.safetensors: .* as they start"):
        assert evaluated("test", "nlvr2", "--model.init_from", "net.safetensors").status == 0
    assert written(tmp_path, "test")["checkpoint"]["path"] == "net.safetensors"


def test_samples_that_were_skipped_are_named(evaluated, trained, tmp_path: Path):
    options = ["--ckpt_path", str(trained("nlvr2").checkpoint), "--data.limits.max_errors", "1"]
    source = ["--data.test.shards", str(damaged(trained("nlvr2"), tmp_path / "damaged", 4))]
    outcome = evaluated("test", "nlvr2", *options, *source)
    assert outcome.status == 0
    assert "1 samples could not be read" in outcome.out
    assert written(tmp_path, "test")["skipped"] == {
        f"{tmp_path}/damaged/00000.tar/000000004": "decode"
    }


def test_a_test_of_nothing_is_refused_and_leaves_nothing(evaluated, trained, tmp_path: Path):
    options = ["--ckpt_path", str(trained("nlvr2").checkpoint), "--data.test", "null"]
    outcome = evaluated("test", "nlvr2", *options)
    assert outcome.status == 2
    assert "mhmoe-mm: error: There is nothing to test" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_figures_are_grouped_by_what_they_are_of():
    objectives = {"answer": 1.0, "token": 0.5}
    grouped = {
        "test/loss": "objectives",
        "test/token_perplexity": "objectives",
        "test/answer_accuracy": "objectives",
        "test/answer_type/yes": "task",
        "test/accuracy": "task",
        "test/experts/activation_image": "experts",
    }
    assert {name: group_of(name, objectives) for name in grouped} == grouped


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.0000"), (0.754386, "0.7544"), (-1.25, "-1.2500"), (31.4159, "31.416"),
        (123.456, "123.46"), (98765.4, "98,765"), (0.00012345, "0.000123"), (torch.nan, "nan"),
    ],
)  # fmt: skip
def test_a_figure_has_as_many_decimals_as_tell_something(value: float, shown: str):
    assert figure(value) == shown


def test_figures_of_one_kind_stand_in_the_order_of_their_numbers():
    names = ["test/recall_at_10", "test/mean", "test/recall_at_5", "test/recall_at_1"]
    assert sorted(names, key=in_order) == [names[1], names[3], names[2], names[0]]
