"""Comparisons of models: what is trained, what is kept, what is shown."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from tools.compare import cells as cells_of
from tools.compare.cli import main
from tools.compare.comparison import read_comparison
from tools.compare.report import spread

STUB = """
import json, pathlib, sys
command, *given = sys.argv[1:]
options = dict(zip(given[::2], given[1::2]))
folder = pathlib.Path(options["--trainer.default_root_dir"], options["--name"], "version_0")
(folder / "checkpoints").mkdir(parents=True)
with open("calls.jsonl", "a") as file:
    file.write(json.dumps([command, options]) + "\\n")
if options.get("--model.lr") == "nan":
    sys.exit("mhmoe-mm: error: the loss is not finite.")
if command == "fit":
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
    monkeypatch.setattr(cells_of, "PROGRAM", (sys.executable, "stub.py"))
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
    table = Path("runs/lamps/results.md").read_text().splitlines()
    assert table[2].startswith("| two stages | 2 | 0.7540 (0.7530 to 0.7550) | - |")
    assert table[4] == "| chance |  | 0.2000 | - |  |"
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


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metrics": None}, "`metrics` maps names to values, got None"),
        ({"seeds": "all"}, "`seeds` is a list of numbers, got 'all'"),
        ({"model": {}}, "has the key model; known are name, stages"),
        ({"models": {"a": "--x 1"}}, "a has options for 1 stages, but `stages` has 2"),
        ({"models": {"a": [None, None]}}, "a leaves out every stage"),
        ({"models": {"a": [None, ""]}}, r"first stage of a asks for \{previous\}"),
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


def test_a_spread_has_all_its_seeds_or_none():
    assert spread([0.5]) == "0.5000"
    assert spread([0.5, None]) == "-"
    assert spread([]) == "-"
