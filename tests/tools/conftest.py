"""A folder to sweep in, with a program that does not train."""

from pathlib import Path

import pytest

from tests.tools.sweep_standin import PROGRAM
from tools.compare import program
from tools.sweep import trials


@pytest.fixture
def sweep_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.yaml").write_text("model: {dim: 7}\n")
    monkeypatch.setattr(program, "PROGRAM", PROGRAM)
    monkeypatch.setattr(trials, "POLL_S", 0.02)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    return tmp_path
