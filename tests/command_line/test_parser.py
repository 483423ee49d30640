"""Remembering what was read changes nothing but the time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningArgumentParser

from mhmoe_mm.command_line import command
from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task

ROOT = Path(__file__).parents[2]


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for every reading that jsonargparse does itself."""
    done: list[int] = []
    real = LightningArgumentParser.parse_object

    def counted(self, *args, **kwargs):
        done.append(1)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LightningArgumentParser, "parse_object", counted)
    monkeypatch.setattr(Command, "instantiate_classes", lambda command: None)
    monkeypatch.chdir(ROOT)
    return done


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model.net.layout.sparse.router.top_k", "3"],
        ["--model.net.layout", "PaperLayout", "--model.net.layout.fused_layers=1"],
        ["--model.net.layout.sparse", "null", "--data.loading.workers", "1"],
    ],
)
def test_a_run_comes_to_the_same_without_memory(
    options: list[str], readings: list[int], monkeypatch: pytest.MonkeyPatch
):
    line = ["fit", "--config", "conf/runs/retrieval_openmoji.yaml", *options]
    remembered = build(line, Task).config
    fewer = len(readings)
    monkeypatch.setattr(command, "remembering", contextlib.nullcontext)
    readings.clear()
    assert build(line, Task).config == remembered
    assert fewer < 0.7 * len(readings)


def test_a_file_that_has_changed_is_read_anew(
    readings: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    line = ["fit", "--config", "conf/runs/retrieval_openmoji.yaml", "--config", str(tmp_path / "a")]
    for rate in (0.25, 0.5):
        (tmp_path / "a").write_text(f"model: {{net: {{drop_path: {rate}}}}}")
        assert build(line, Task).config.fit.model.init_args.net.init_args.drop_path == rate
