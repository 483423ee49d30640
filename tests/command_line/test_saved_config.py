"""A run's configuration is written whole, and earlier ones are kept."""

from pathlib import Path

import pytest

from mhmoe_mm.command_line.saved_config import redacted, write


def test_earlier_configurations_keep_a_number(tmp_path: Path):
    for text in ("first", "second", "third"):
        write(tmp_path / "run", text)
    kept = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert kept == {"config.1.yaml": "first", "config.2.yaml": "second", "config.yaml": "third"}


def test_values_of_the_environment_become_references(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLACE", "/data/7")
    monkeypatch.delenv("ABSENT", raising=False)
    content = {"shards": ["/data/7/train", 7], "seed": 7, "none": None}
    assert redacted(content, ["PLACE", "ABSENT"]) == {
        "shards": ["${oc.env:PLACE}/train", 7],
        "seed": 7,
        "none": None,
    }
