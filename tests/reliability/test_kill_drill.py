"""Killed at any moment, a training goes on as if nothing had been."""

import json
from pathlib import Path

import pytest

from tests.reliability.processes import project
from tools.kill_drill import main

COMMAND = [
    *(
        "--trainer.strategy",
        "fsdp",
        "--trainer.max_steps",
        "40",
        "--trainer.limit_val_batches",
        "0",
    ),
    *("--checkpoint.every_n_train_steps", "2", "--trainer.log_every_n_steps", "1"),
]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(800)
def test_a_training_that_is_killed_three_times_comes_to_the_same(tmp_path: Path, capsys):
    config, out = project(tmp_path / "project"), tmp_path / "drill"
    kills = ["--kills", "3", "--seed", "3", "--out", str(out)]
    assert main([*kills, "--", "--config", str(config), *COMMAND]) == 0, capsys.readouterr().out
    found = json.loads((out / "drill.json").read_text())
    assert found["kills"] >= 2
    assert found["while_saving"] >= 1
    assert found["steps"] == 40
    assert max(found["resumed_from"]) > 0
    assert found["same_weights"]
    assert found["same_figures"]


def test_a_folder_that_is_there_is_refused(tmp_path: Path, capsys):
    assert main(["--out", str(tmp_path), "--", "--config", "run.yaml"]) == 2
    assert "is there already: name a new folder with --out" in capsys.readouterr().err
