"""Resuming goes on from where a run stopped, and never replaces what was typed in silence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mhmoe_mm.command_line import command
from mhmoe_mm.command_line.resume import compare, find_checkpoint
from mhmoe_mm.storage.sealed import save_sealed
from tests.command_line.conftest import Outcome

Program = Callable[..., Outcome]


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the command says besides errors."""
    said: list[str] = []
    monkeypatch.setattr(command, "rank_zero_info", said.append)
    return said


def test_last_is_the_newest_of_the_run_by_number(folder: Path):
    for number in (2, 9, 11):
        path = folder / f"runs/toy/version_{number}/checkpoints/last.ckpt"
        path.parent.mkdir(parents=True)
        save_sealed({}, path)
    assert find_checkpoint("last", folder / "runs", "toy") == path


@pytest.mark.parametrize("asked", ["best", "s3://bucket/a.ckpt", "http://host/a.ckpt", "none.ckpt"])
def test_a_checkpoint_that_cannot_be_had_is_refused(asked: str, folder: Path):
    with pytest.raises(ValueError, match=asked):
        find_checkpoint(asked, folder / "runs", "toy")


def test_differences_are_named_by_key_with_both_values():
    there = {"net": {"class_path": "a.Net", "init_args": {"dim": 6}}, "scale": 1.0, "old": 3}
    here = {"net": {"class_path": "a.Net", "init_args": {"dim": 10}}, "scale": 1.0}
    assert compare(there, here) == [
        "net.dim: 6 in the checkpoint, 10 here",
        "old: 3 in the checkpoint, nothing here",
    ]


def test_a_run_goes_on_with_what_was_typed(program: Program, folder: Path, notes: list[str]):
    assert program("fit").status == 0
    options = ["--trainer.max_steps=3", "--model.scale=0.5", "--ckpt_path=last"]
    assert program("fit", *options).status == 0
    (note,) = [line for line in notes if "differs" in line]
    assert note.endswith("version_0/checkpoints/last.ckpt: scale: 1.0 in the checkpoint, 0.5 here")
    stored = torch.load(folder / "runs/toy/version_1/checkpoints/last.ckpt", weights_only=True)
    assert stored["global_step"] == 3
    assert stored["hyper_parameters"]["scale"] == 0.5


def test_another_net_is_refused_unless_asked_for(program: Program, folder: Path, notes: list[str]):
    assert program("fit").status == 0
    router = "--model.net.layout.sparse.router.top_k=1"
    refused = program("fit", "--ckpt_path=last", router)
    assert refused.status == 2
    assert refused.err.strip() == (
        "mhmoe-mm: error: runs/toy/version_0/checkpoints/last.ckpt holds another net: "
        "net.layout.sparse.router.top_k: 2 in the checkpoint, 1 here. "
        "Add `--net_changes true` to go on."
    )
    assert program("validate", "--ckpt_path=last", router, "--net_changes=true").status == 0
    misfit = program("validate", "--ckpt_path=last", "--model.net.dim=10", "--net_changes=true")
    assert misfit.status == 2
    assert "The checkpoint does not fit this model: size mismatch for net.blocks.0" in misfit.err


def test_a_checkpoint_never_runs_code(program: Program, folder: Path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    torch.save({"hyper_parameters": {"a": Bomb()}}, folder / "bomb.ckpt")
    outcome = program("fit", "--ckpt_path=bomb.ckpt")
    assert outcome.status == 2
    assert "bomb.ckpt is not a checkpoint that can be read safely" in outcome.err
    assert not (folder / "ran").exists()
