"""Comparisons of models: what is trained, what is kept, what is shown."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tools.compare import cells as cells_of
from tools.compare import cli, program
from tools.compare.cli import main
from tools.compare.comparison import read_comparison
from tools.compare.places import places
from tools.compare.report import spread

STUB = """
import json, os, pathlib, sys
command, *given = sys.argv[1:]
options = dict(zip(given[::2], given[1::2]))
folder = pathlib.Path(options["--trainer.default_root_dir"], options["--name"], "version_0")
(folder / "checkpoints").mkdir(parents=True)
with open("calls.jsonl", "a") as file:
    file.write(json.dumps([command, options]) + "\\n")
if options.get("--model.lr") == "nan":
    sys.exit("mhmoe-mm: error: the loss is not finite.")
(folder / "seen.json").write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))
if command == "fit":
    cost = [7000, 5000, 3000, int(options.get("--macs", 1000)), 50, 2]
    names = "parameters", "active_parameters", "feed_forward_parameters", "macs", "router_macs"
    net = dict(zip((*names, "sparse_layers"), cost))
    took = {"median_seconds_per_step": 0.25, "peak_memory_bytes": 3 << 20, "net": net}
    (folder / "resources.json").write_text(json.dumps(took))
    seed = int(options["--seed_everything"])
    rows = ["epoch,step,val/loss", f"0,19,{4 - seed / 4}", f"0,39,{2 - seed / 8}"]
    (folder / "metrics.csv").write_text("\\n".join(rows))
    before = options.get("--model.init_from")
    weights = pathlib.Path(before).read_text() + "+" if before else ""
    (folder / "checkpoints/last.ckpt").write_text(weights + options.get("--model.lr", "0"))
else:
    weights = pathlib.Path(options["--ckpt_path"]).read_text()
    score = sum(map(float, weights.split("+"))) + 0.001 * int(options["--seed_everything"])
    (folder / "test.json").write_text(json.dumps({"metrics": {"test/accuracy": score}}))
"""
FILE = {
    "name": "lamps",
    "seeds": [3, 5],
    "stages": ["--config run.yaml", "--config run.yaml --model.init_from {previous}"],
    "models": {
        "two stages": ["--model.lr 0.25", "--model.lr 0.5"],
        "one/stage": ["--model.lr 0.125", None],
    },
    "test": "--data.rows 7",
    "metrics": {"test/accuracy": "accuracy", "test/other": "other"},
    "chance": {"test/accuracy": 0.2},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "run.yaml").write_text("model: {dim: 7}\n")
    monkeypatch.setattr(program, "PROGRAM", (sys.executable, "stub.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compare(*options: str, **changes) -> int:
    Path("lamps.yaml").write_text(yaml.safe_dump({**FILE, **changes}, sort_keys=False))
    return main(["lamps.yaml", *options])


def calls() -> list[tuple[str, dict[str, str]]]:
    path = Path("calls.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_every_model_is_trained_with_every_seed_and_tested(folder, capsys):
    assert compare("--jobs", "2") == 0
    assert sorted(command for command, _ in calls()) == ["fit"] * 6 + ["test"] * 4
    for command, options in calls():
        assert ("--data.rows" in options) == (command == "test")
        assert "{previous}" not in options.get("--model.init_from", "")
    results = json.loads(Path("runs/lamps/results.json").read_text())
    assert [(one["model"], one["seed"]) for one in results] == [
        ("two stages", 3), ("one/stage", 3), ("two stages", 5), ("one/stage", 5)
    ]  # fmt: skip
    found = [one["metrics"]["test/accuracy"] for one in results]
    assert found == pytest.approx([0.753, 0.128, 0.755, 0.130])
    report = Path("runs/lamps/results.md").read_text()
    assert "\n| two stages | 2 | 0.7540 (0.7530 to 0.7550) | - | 250.0 | 3 | 0." in report
    assert "\n| chance |  | 0.2000 | - |  |  |  |\n" in report
    assert "two stages, seed 5: accuracy 0.7550" in capsys.readouterr().out


def test_what_is_finished_is_kept_until_something_else_is_asked(folder, capsys):
    assert compare("--seeds", "3") == 0
    before = calls()
    assert compare("--seeds", "3") == 0
    assert calls() == before
    assert "2 runs, of which 2 are finished" in capsys.readouterr().out
    assert compare("--seeds", "3", "--models", "one/stage", test="--data.rows 11") == 0
    assert len(calls()) == len(before) + 2
    Path("run.yaml").write_text("# Expect  0.9\nmodel: {dim: 7}\n")
    assert compare("--seeds", "3") == 0
    assert len(calls()) == len(before) + 2 + 2  # one/stage was trained with other options before
    Path("run.yaml").write_text("model: {dim: 11}\n")
    assert compare("--seeds", "3") == 0
    assert len(calls()) == len(before) + 2 + 2 + 5


def test_a_failed_run_is_told_and_leaves_the_others(folder, capsys):
    models = {"good": ["--model.lr 0.5", None], "bad": ["--model.lr nan", None]}
    assert compare("--seeds", "3", models=models) == 1
    said = capsys.readouterr()
    assert "bad, seed 3: fit of lamps/bad/seed-3/stage-1 failed" in said.err
    assert "ends: mhmoe-mm: error: the loss is not finite." in said.err
    assert "1 of 2 runs failed" in said.out
    results = json.loads(Path("runs/lamps/results.json").read_text())
    assert [one["model"] for one in results] == ["good"]
    assert "\n- bad, seed 3: fit of lamps/bad/" in Path("runs/lamps/results.md").read_text()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metrics": None}, "`metrics` maps names to values, got None"),
        ({"seeds": "all"}, "`seeds` is a list of numbers, got 'all'"),
        ({"model": {}}, "has the key model; known are name, stages"),
        ({"models": {"a": "--x 1"}}, "a has options for 1 stages, but `stages` has 2"),
        ({"models": {"a": [None, None]}}, "a leaves out every stage"),
        ({"models": {"a": [None, ""]}}, r"first stage of a asks for \{previous\}"),
        ({"models": {"a b": ["", None], "A/B": ["", None]}}, "two models would have the same fold"),
        ({"reference": "three"}, "the reference three is no model; there are two stages, one/sta"),
        ({"tolerance": {"flops": 0.1}}, "maps parameters and macs to shares such as 0.05"),
        ({"models": {"a": {"preset": "smoe"}}}, "a is the shape of a layer: name the net to put"),
    ],
)
def test_a_file_that_is_wrong_gets_a_sentence(folder, capsys, changes, why):
    assert compare(**changes) == 2
    with pytest.raises(ValueError, match=why):
        read_comparison(Path("lamps.yaml"))
    assert capsys.readouterr().err.startswith("compare: error: lamps.yaml")
    assert not calls()


def test_what_is_not_there_gets_a_sentence(folder, capsys):
    assert main(["none.yaml"]) == 2
    assert compare("--models", "three") == 2
    assert compare("--jobs", "0") == 2
    Path("broken.yaml").write_text("name: [")
    assert main(["broken.yaml"]) == 2
    missing, model, jobs, broken = capsys.readouterr().err.splitlines()
    assert missing == "compare: error: none.yaml: No such file or directory."
    assert model.endswith("has no model three; it has two stages, one/stage.")
    assert jobs.endswith("--jobs is at least 1, got 0.")
    assert "broken.yaml is not YAML" in broken


def test_a_comparison_that_was_stopped_ends_in_the_same_report(folder, monkeypatch):
    compare("--seeds", "3", "5", "--runs", "whole")
    carry_out, begun = cells_of.carry_out, []

    def stopped(cell, where):
        begun.append(cell)
        if len(begun) == 3:
            (cell.runs / cell.name).mkdir(parents=True)  # half a run
            raise KeyboardInterrupt
        return carry_out(cell, where)

    monkeypatch.setattr(cli, "carry_out", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare()
    partial = Path("runs/lamps/results.md").read_text()
    assert "\n| two stages | 1 |" in partial
    monkeypatch.setattr(cli, "carry_out", carry_out)
    assert compare() == 0
    reports = [Path(runs, "lamps/results.md").read_text() for runs in ("whole", "runs")]
    whole, resumed = (report.split("```")[2] for report in reports)
    minutes = re.compile(r"\d+\.\d \|$", re.MULTILINE)  # which are measured
    assert minutes.sub("", whole) == minutes.sub("", resumed)
    assert Path("runs/lamps/curves.png").read_bytes() == Path("whole/lamps/curves.png").read_bytes()


def test_what_costs_more_than_the_reference_is_said_to(folder, capsys):
    models = {"plain": ["", None], "dear": ["--macs 1011", None], "near": ["--macs 1009", None]}
    assert compare("--seeds", "3", models=models, reference="plain") == 0
    complaint = "NOT MATCHED: dear has +1.1% multiply-adds per token (at most 1%) beside plain."
    assert complaint in capsys.readouterr().out
    report = Path("runs/lamps/results.md").read_text()
    assert f"- {complaint}\n" in report
    assert report.count("NOT MATCHED") == 1
    assert "| dear | 7,000 | 5,000 | 3,000 | 1,011 | 50 | +0.0% | +1.1% |" in report
    compare("--seeds", "3", models=models, reference="plain", tolerance={"macs": 0.02})
    assert "NOT MATCHED" not in Path("runs/lamps/results.md").read_text()


def test_runs_at_a_time_have_gpus_of_their_own(folder, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert compare("--jobs", "2", "--seeds", "3") == 0
    seen = {json.loads(path.read_text()) for path in Path("runs/lamps").rglob("seen.json")}
    assert seen == {"2", "7"}
    free = places(3)
    assert sorted(str(free.get().gpu) for _ in range(3)) == ["2", "2", "7"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert places(1).get().gpu is None


def test_a_spread_has_all_its_seeds_or_none():
    assert spread([0.5]) == "0.5000"
    assert spread([0.5, None]) == "-"
    assert spread([]) == "-"
