"""A sweep of real trainings, tiny ones."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task
from tests.language import LINE, write_run
from tools.sweep.cli import main


@pytest.mark.slow
def test_the_best_of_a_sweep_is_trained_again_to_the_same_figure(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    training = write_run(tmp_path, [LINE] * 31)
    content = {
        "name": "letters",
        "command": f"--config {training} --trainer.max_steps 12 --trainer.val_check_interval 3",
        "space": {
            "model.optimizer.lr": {"choices": [0.01, 0.0]},
            "model.net.sparse.num_experts": {"choices": [3]},
        },
        "metric": "val/loss",
        "sampler": "grid",
        "budget": {"trials": 5},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(content))
    assert main(["run", "sweep.yaml"]) == 0
    with Path("runs/letters/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["finished", "finished"]
    learnt, idle = (float(row["val/loss"]) for row in rows)
    assert learnt < idle - 0.5
    assert 6 < int(rows[0]["step"]) < 12
    assert int(rows[0]["parameters"]) > 1000
    settings = yaml.safe_load(Path("runs/letters/best.yaml").read_text())
    assert (
        settings["model"]["init_args"]["net"]["init_args"]["sparse"]["init_args"]["num_experts"]
        == 3
    )
    assert run(["fit", "--config", "runs/letters/best.yaml"], Task) == 0
    with Path("runs/letters-best/version_0/metrics.csv").open(newline="") as file:
        values = [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]]
    assert float(values[-1]) == learnt
    assert json.loads(Path("runs/letters/trial-0000/version_0/resources.json").read_text())
