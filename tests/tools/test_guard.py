"""Ratios that have grown are found, whatever the machine's speed."""

import json
from pathlib import Path

import pytest

from tools.benchmarks import guard


def written(path: Path, ours: float, dense: float = 10.0, spread: float = 0.0, **others) -> str:
    figures = {"dense": dense, "ours": ours, "loop": 99.0, **others}
    row = {"case": "T7", "dim": 12}
    row |= {name: {"ms": ms, "spread": spread} for name, ms in figures.items()}
    row["strange"] = {"reason": "fails"}
    path.write_text(json.dumps({"told": path.stem, "rows": [row]}))
    return str(path)


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    return written(tmp_path / "recorded.json", 20.0, peer=30.0)


def test_a_slower_machine_is_no_slower_layer(tmp_path: Path, recorded: str, capsys):
    new = written(tmp_path / "new.json", 200.0, 100.0, peer=300.0)
    assert guard.main([new, recorded]) == 0
    assert "0 of 2 ratios have grown by more than 15%" in capsys.readouterr().out


def test_a_slower_layer_is_found_against_each(tmp_path: Path, recorded: str, capsys):
    new = written(tmp_path / "new.json", 24.0, peer=20.0)
    assert guard.main([new, recorded]) == 1
    told = capsys.readouterr().out
    assert "2 of 2 ratios have grown" in told
    assert told.index("+80%") < told.index("+20%")
    assert guard.main([new, recorded, "--allow", "0.3"]) == 1
    assert guard.main([new, recorded, "--allow", "0.9"]) == 0


def test_what_the_measurement_spreads_is_allowed(tmp_path: Path, recorded: str):
    new = written(tmp_path / "new.json", 24.0, peer=36.0, spread=0.05)
    assert guard.main([new, recorded]) == 0
    new = written(tmp_path / "new.json", 24.0, peer=36.0, spread=0.02)
    assert guard.main([new, recorded]) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is no file of a benchmark"),
        ('{"rows": [{"case": "T7"}]}', "is no file of a benchmark"),
        ('{"rows": [{"case": "T8", "ours": {"ms": 1, "spread": 0}}]}', "no case in common"),
    ],
)
def test_what_cannot_be_compared_gets_a_sentence(
    tmp_path: Path, recorded: str, content: str, told: str, capsys
):
    path = tmp_path / "new.json"
    path.write_text(content)
    assert guard.main([str(path), recorded]) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_is_not_there_gets_a_sentence(recorded: str, capsys):
    assert guard.main(["nowhere.json", recorded]) == 2
    assert "nowhere.json: No such file" in capsys.readouterr().err
