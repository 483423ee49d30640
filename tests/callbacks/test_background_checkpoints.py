"""Checkpoints that are written while training goes on."""

import os
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from mhmoe_mm.callbacks.checkpoints import LAST
from mhmoe_mm.storage import checkpoint_io
from mhmoe_mm.storage.sealed import save_sealed, verify_sealed
from tests.callbacks.test_checkpoints import SCORES, run, steps


class SlowDisk(Callback):
    """Lets the first file be written only after step `until`; notes what is there at its end."""

    def __init__(self, folder: Path, until: int, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.until = folder, until
        self.free = threading.Event()
        self.seen: list[int] = []
        monkeypatch.setattr(checkpoint_io, "save_sealed", self._save)

    def _save(self, content, path) -> None:
        assert self.free.wait(30)
        save_sealed(content, path)

    def on_train_batch_end(self, trainer: Trainer, *others) -> None:
        if trainer.global_step == self.until:
            self.seen = steps(self.folder) if self.folder.exists() else []
            self.free.set()


class Moving(Callback):
    """What is in the weights and the optimizer changes in place at every step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        for group in optimizer.param_groups:
            group["momentum"] = 0.9


def test_training_goes_on_meanwhile_and_what_is_written_is_the_state_that_it_was(
    tmp_path: Path, monkeypatch
):
    run(tmp_path / "at once", Moving(), every_n_train_steps=2, save_top_k=-1)
    slow = SlowDisk(tmp_path / "beside", 3, monkeypatch)
    run(tmp_path / "beside", Moving(), slow, every_n_train_steps=2, save_top_k=-1, background=True)
    assert slow.seen == []
    assert steps(tmp_path / "beside") == steps(tmp_path / "at once") == [2, 4]
    for step in (2, 4):
        one, other = (
            torch.load(tmp_path / name / f"step={step}.ckpt", weights_only=True)
            for name in ("at once", "beside")
        )
        assert one["global_step"] == other["global_step"] == step
        assert one["loops"] == other["loops"]
        assert one["state_dict"]["weight"].equal(other["state_dict"]["weight"])
        momenta = [c["optimizer_states"][0]["state"][0]["momentum_buffer"] for c in (one, other)]
        assert momenta[0].equal(momenta[1])
    first, second = (
        torch.load(tmp_path / "beside" / f"step={step}.ckpt", weights_only=True) for step in (2, 4)
    )
    assert not first["state_dict"]["weight"].equal(second["state_dict"]["weight"])


def test_the_last_one_and_those_before_stay_until_the_new_one_is_whole(tmp_path: Path, monkeypatch):
    seen = []

    def save(content, path) -> None:
        if (tmp_path / LAST).is_symlink():
            assert verify_sealed(tmp_path / LAST)
            assert os.readlink(tmp_path / LAST) == f"step={content['global_step'] - 1}.ckpt"
            seen.append(steps(tmp_path))
        save_sealed(content, path)

    monkeypatch.setattr(checkpoint_io, "save_sealed", save)
    run(tmp_path, background=True)
    assert seen == [[step] for step in range(1, len(SCORES))]
    assert steps(tmp_path) == [len(SCORES)]


class FullDisk:
    """Has no room for the state of a step."""

    def __init__(self, step: int):
        self.step = step

    def __call__(self, content, path) -> None:
        if content["global_step"] == self.step:
            raise OSError("there is no room")
        save_sealed(content, path)


@pytest.mark.parametrize("step", [3, 5])
def test_one_that_cannot_be_written_ends_the_run_and_the_one_before_stays(
    tmp_path: Path, monkeypatch, step: int
):
    monkeypatch.setattr(checkpoint_io, "save_sealed", FullDisk(step))
    with pytest.raises(OSError, match=f"Step {step} is not saved: there is no room"):
        run(tmp_path, background=True)
    assert steps(tmp_path) == [step - 1]
    assert os.readlink(tmp_path / LAST) == f"step={step - 1}.ckpt"


class Waits(Callback):
    """For the thread that writes, so that what it came to is there at the end of the step."""

    def on_train_batch_end(self, trainer: Trainer, *others) -> None:
        for future in list(trainer.checkpoint_callback._writer._given):
            future.exception(30)


def test_it_is_told_before_the_run_ends(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint_io, "save_sealed", FullDisk(2))
    told = pytest.warns(UserWarning, match="Step 2 is not saved: there is no room. The run ends at")
    with told as warned, pytest.raises(OSError, match="Step 2 is not saved"):
        run(tmp_path, Waits(), every_n_train_steps=2, background=True)
    assert len([w for w in warned if "is not saved" in str(w.message)]) == 1


class Breaks(Callback):
    """A training that fails in its fourth step."""

    def on_before_optimizer_step(self, trainer: Trainer, *others) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("something else")


def test_a_run_that_fails_completes_what_is_being_written(tmp_path: Path):
    with pytest.raises(RuntimeError, match="something else"):
        run(tmp_path, Breaks(), background=True)
    assert steps(tmp_path) == [3]
    assert verify_sealed(tmp_path / LAST)
    assert not any("checkpoint" in thread.name for thread in threading.enumerate())
