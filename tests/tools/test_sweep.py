"""Sweeps: what is begun, what becomes of it, what is shown; with a program that does not train."""

import csv
from collections import Counter
from pathlib import Path

import optuna
import pytest
import yaml

from tests.tools.sweep_standin import FILE, calls, rows, sweep
from tools.sweep.cli import main
from tools.sweep.plots import importances
from tools.sweep.storage import open_study
from tools.sweep.sweep import read_sweep

NET = {
    "class_path": "mhmoe_mm.models.decoder.Decoder",
    "init_args": {
        "vocab_size": 7, "dim": 24, "num_layers": 2, "num_heads": 2, "max_text": 8,
        "dense": {"class_path": "mhmoe_mm.models.ffn.SwiGLUFFN", "init_args": {"hidden": 64}},
    },
}  # fmt: skip


def test_a_grid_is_tried_once_and_the_best_is_found(sweep_folder, capsys):
    assert sweep("--jobs", "2") == 0
    assert Counter(calls("ended")) == dict.fromkeys([2, 3, 5, 7, 11, 13], 1)
    assert [(row["model.x"], row["val/loss"]) for row in rows()] == [
        ("3", "3.25"), ("2", "2.25"), ("7", "7.25"), ("5", "5.25"), ("11", "11.25"), ("13", "13.25")
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "6 trials: 6 finished." in said
    assert "The best is trial 1: val/loss 2.2500 with model.x 2." in said
    best = Path("runs/hill/best.yaml").read_text()
    assert best.startswith("# Run     mhmoe-mm fit --config runs/hill/best.yaml\n")
    assert yaml.safe_load(best) == {"name": "hill-best", "model": {"x": 2.0}, "ckpt_path": None}
    report = Path("runs/hill/results.md").read_text()
    assert report.index("| 1 | 2 | 2.2500 |") < report.index("| 5 | 13 | 13.2500 |")
    assert "](parallel.png)" in report
    assert "importance" not in report  # of six trials
    assert Path("runs/hill/parallel.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_finished_is_not_tried_again_and_a_larger_budget_goes_on(sweep_folder, capsys):
    assert sweep(budget={"trials": 2}) == 0
    assert calls() == [3, 2]
    assert sweep(budget={"trials": 2}) == 0
    assert calls() == [3, 2]
    assert sweep("--trials", "3", budget={"trials": 2}) == 0
    assert calls() == [3, 2, 7]
    assert sweep(budget={"seconds": 1e-3}) == 0
    assert calls() == [3, 2, 7]
    capsys.readouterr()
    assert sweep(metric="val/other") == 2
    assert "hill was begun with another file" in capsys.readouterr().err
    Path("run.yaml").write_text("model: {dim: 11}\n")
    assert sweep() == 2
    Path("run.yaml").write_text("# a comment\nmodel: {dim: 7}\n")
    assert sweep() == 0
    assert calls() == [3, 2, 7, 5, 11, 13]


def test_what_is_worse_than_the_median_is_ended_early(sweep_folder, capsys):
    assert sweep(more="--pause 0.15", pruner={"startup_trials": 2, "warmup_steps": 1}) == 0
    states = {row["model.x"]: row["state"] for row in rows()}
    assert states == {
        "3": "finished", "2": "finished", "7": "pruned", "5": "pruned", "11": "pruned",
        "13": "pruned",
    }  # fmt: skip
    assert calls("ended") == [3, 2]
    assert {row["why"] for row in rows()} == {"", "ended at step 1"}
    assert "trial 2 was pruned at step 1, val/loss 7.5000" in capsys.readouterr().out


def test_layers_that_cannot_cost_the_same_are_infeasible(sweep_folder):
    Path("net.yaml").write_text(yaml.safe_dump(NET))
    space = {
        "layer.num_heads": {"choices": [1, 2, 3, 5]},
        "layer.num_experts": {"choices": [2, 8]},
        "model.x": {"choices": [3]},
    }
    layer = {"base": "net.yaml", "like": "smoe", "equal": ["macs"]}
    heatmap = ["layer.num_heads", "layer.num_experts"]
    assert sweep(space=space, layer=layer, heatmap=heatmap) == 0
    found = {(row["layer.num_heads"], row["layer.num_experts"]): row for row in rows()}
    assert [pair for pair, row in found.items() if row["state"] == "infeasible"] == [
        ("3", "2"), ("5", "2"), ("5", "8")
    ]  # fmt: skip
    assert found["3", "2"]["why"] == "top_k=3 is more than num_experts=2."
    assert found["5", "8"]["why"] == "num_heads=5 does not divide dim=24."
    assert len({row["macs"] for row in found.values()} - {""}) == 1
    net = yaml.safe_load(Path("runs/hill/trial-0003/net.yaml").read_text())
    sparse = net["init_args"]["sparse"]["init_args"]
    assert (sparse["num_heads"], sparse["num_experts"]) == (2, 8)
    assert sparse["experts"]["init_args"]["hidden"] == 24
    assert "](heatmap.png)" in Path("runs/hill/results.md").read_text()
    assert len(calls()) == 5


def test_what_is_to_be_equal_besides_is_checked(sweep_folder):
    Path("net.yaml").write_text(yaml.safe_dump(NET))
    space = {"layer.num_experts": {"choices": [8, 40, 80]}, "model.x": {"choices": [3]}}
    layer = {"base": "net.yaml", "like": "smoe", "equal": ["macs", "parameters"], "num_heads": 2}
    assert sweep(space=space, layer={**layer, "tolerance": {"parameters": 0.1}}) == 0
    assert [row["state"] for row in rows()] == ["infeasible", "finished", "infeasible"]
    assert rows()[0]["why"].startswith("NOT MATCHED: it has -")
    assert "parameters (at most 10%) beside smoe" in rows()[0]["why"]
    layer = {**layer, "equal": ["parameters"]}
    assert sweep(name="hill2", space=space, layer=layer) == 0
    with Path("runs/hill2/trials.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["state"] for row in found] == ["finished"] * 3
    parameters = [int(row["parameters"]) - 24 * int(row["layer.num_experts"]) for row in found]
    assert max(parameters) / min(parameters) < 1.1


def test_random_values_do_not_depend_on_where_a_sweep_was_stopped(sweep_folder):
    space = {"model.x": {"float": [0.5, 50], "log": True}}
    changes = {"space": space, "sampler": "random"}
    assert sweep("--runs", "whole", "--trials", "4", **changes) == 0
    assert sweep("--trials", "1", **changes) == 0
    assert sweep("--trials", "4", "--jobs", "2", **changes) == 0
    whole, parts = calls()[:4], calls()[4:]
    assert sorted(whole) == sorted(parts)
    assert len({*whole}) == 4


def test_tpe_tries_what_the_space_allows(sweep_folder):
    space = {"model.x": {"float": [0.5, 50], "log": True}, "steps": {"int": [2, 6], "step": 2}}
    storage = f"sqlite:///{sweep_folder}/trials.db"
    changes = {"space": space, "sampler": "tpe", "budget": {"trials": 3}}
    assert sweep("--storage", storage, **changes) == 0
    assert len({*calls()}) == 3
    assert all(0.5 <= x <= 50 for x in calls())
    assert {row["steps"] for row in rows()} <= {"2", "4", "6"}
    assert not Path("runs/hill/journal.log").exists()


def test_what_matters_more_is_more_important(sweep_folder):
    space = {"model.x": {"choices": [2, 3, 5, 7]}, "idle": {"options": {"a": "--a 1", "b": None}}}
    assert sweep(space=space) == 0
    sweep_file = read_sweep(Path("hill.yaml"))
    study = open_study(sweep_file, None, Path("runs"), make=False)
    found = importances(study)
    assert found["model.x"] > 0.9
    assert "](importance.png)" in Path("runs/hill/results.md").read_text()


def test_the_last_value_or_the_best_one_counts_and_up_may_be_better(sweep_folder):
    changes = {"value": "best", "direction": "maximize"}
    assert sweep(**changes) == 0
    assert [row["val/loss"] for row in rows()] == ["4.0", "3.0", "8.0", "6.0", "12.0", "14.0"]
    assert "trial 5" in Path("runs/hill/results.md").read_text().split("The best is ")[1][:8]


def test_a_journal_that_was_cut_within_a_line_goes_on(sweep_folder):
    assert sweep("--trials", "2") == 0
    with Path("runs/hill/journal.log").open("a") as file:
        file.write('{"op_code":4,"worker')
    assert sweep("--trials", "3") == 0
    assert calls() == [3, 2, 7]
    assert len(rows()) == 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metric": None}, "the file must have the keys name, command"),
        ({"runs": 3}, "the file has the key runs; known are name"),
        ({"name": "a/b"}, "`name` becomes a folder"),
        ({"space": {}}, "`space` maps keys to what they may be"),
        ({"space": {"x": [1, 2]}}, "x has one of choices, options, int, float, got"),
        ({"space": {"x": {"choices": [[1], [2]]}}}, "x: choices in a list are different texts"),
        ({"space": {"x": {"int": [1, 8], "low": 3}}}, "x has low, which int does not know"),
        ({"space": {"x": {"int": [8, 1]}}}, "x: `int` is the least and the greatest number"),
        ({"space": {"x": {"float": [0.0, 1.0], "log": True}}}, "x: `float` is the least"),
        ({"space": {"x": {"float": [0, 1]}}}, "a grid needs choices, and x is a range of numbers"),
        ({"space": {"name": {"choices": ["a"]}}}, "name cannot be varied"),
        ({"space": {"layer.top_k": {"choices": [1]}}}, "layer.top_k is of a layer: say which net"),
        ({"layer": {"base": "net.yaml", "equal": ["macs"]}}, "`like` is one of dense"),
        ({"direction": "down"}, "`direction` is minimize or maximize, got 'down'"),
        ({"budget": {}}, "`budget` has trials, seconds or both"),
        ({"budget": {"trials": 0}}, "`budget` has trials and seconds above 0"),
        ({"pruner": {"startup_trials": "2"}}, "`pruner` maps its keys to whole numbers"),
        ({"heatmap": ["model.x", "y"]}, "`heatmap` is two keys of the space"),
    ],
)
def test_a_file_that_is_wrong_gets_a_sentence(sweep_folder, capsys, changes, why):
    Path("net.yaml").write_text(yaml.safe_dump(NET))
    assert sweep(**changes) == 2
    with pytest.raises(ValueError, match=why.replace("`", ".")):
        read_sweep(Path("hill.yaml"))
    assert capsys.readouterr().err.startswith("sweep: error: hill.yaml: ")
    assert not Path("runs").exists()


def test_a_report_without_trials_is_refused(sweep_folder, capsys):
    assert sweep(subcommand="report") == 2
    assert "no trial of hill was begun" in capsys.readouterr().err
    assert not Path("runs").exists()
    optuna.create_study(storage="sqlite:///other.db", study_name="other")
    Path("hill.yaml").write_text(yaml.safe_dump(FILE))
    assert main(["report", "hill.yaml", "--storage", "sqlite:///other.db"]) == 2
