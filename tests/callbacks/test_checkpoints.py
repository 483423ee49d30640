"""Which checkpoints are kept, and what `last.ckpt` points to at any moment."""

import os
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from mhmoe_mm.callbacks import checkpoints
from mhmoe_mm.callbacks.averaging import AveragedWeights
from mhmoe_mm.callbacks.checkpoints import LAST, Checkpoints
from mhmoe_mm.storage.checkpoint_io import SealedCheckpointIO
from mhmoe_mm.storage.sealed import verify_sealed

SCORES = [0.5, 0.1, 0.4, 0.3, 0.2]
"""Logged at the steps 1 to 5; the smallest are the best."""


class Scored(LightningModule):
    """Has a score at every step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def training_step(self, batch, batch_idx):
        self.log("score", SCORES[batch_idx])
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder: Path, *others: Callback, **options) -> Checkpoints:
    keeper = Checkpoints(
        dirpath=str(folder),
        **{"filename": "{step}", "every_n_train_steps": 1, "save_last": "link"} | options,
    )
    trainer = Trainer(
        accelerator="cpu", max_steps=len(SCORES), callbacks=[keeper, *others], logger=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        plugins=[SealedCheckpointIO()],
    )  # fmt: skip
    trainer.fit(Scored(), DataLoader(range(len(SCORES)), batch_size=1))
    return keeper


def steps(folder: Path) -> list[int]:
    names = [path.stem for path in folder.iterdir() if path.name != LAST]
    return sorted(int(name.removeprefix("step=")) for name in names)


@pytest.mark.parametrize(
    ("options", "kept", "last"),
    [
        ({}, [5], 5),
        ({"keep_last": 3}, [3, 4, 5], 5),
        ({"save_top_k": -1}, [1, 2, 3, 4, 5], 5),
        ({"save_top_k": 0, "keep_last": 1}, [5], 5),
        ({"monitor": "score"}, [2], 2),
        ({"monitor": "score", "save_top_k": 2, "mode": "max"}, [1, 3], 3),
        ({"monitor": "score", "keep_last": 1}, [2, 5], 5),
        ({"monitor": "score", "save_top_k": 2, "keep_last": 2}, [2, 4, 5], 5),
        ({"monitor": "score", "save_top_k": 2, "mode": "max", "keep_last": 1}, [1, 3, 5], 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("background", [False, True])
def test_the_best_and_the_newest_are_kept_and_last_is_the_newest_written(
    tmp_path: Path, options, kept, last, background
):
    run(tmp_path, background=background, **options)
    assert steps(tmp_path) == kept
    assert os.readlink(tmp_path / LAST) == f"step={last}.ckpt"
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == last
    assert verify_sealed(tmp_path / LAST)


def test_whenever_one_is_removed_or_written_last_is_whole(tmp_path: Path, monkeypatch):
    seen = []

    class Watched(SealedCheckpointIO):
        def _look(self) -> None:
            if (tmp_path / LAST).is_symlink():
                assert verify_sealed(tmp_path / LAST)
                seen.append(os.readlink(tmp_path / LAST))

        def save_checkpoint(self, checkpoint, path, storage_options=None):
            self._look()
            super().save_checkpoint(checkpoint, path)
            self._look()

        def remove_checkpoint(self, path):
            self._look()
            super().remove_checkpoint(path)
            self._look()

    monkeypatch.setitem(globals(), "SealedCheckpointIO", Watched)
    run(tmp_path)
    assert len(seen) > 4 * (len(SCORES) - 2)
    assert sorted(seen) == seen


def test_without_room_nothing_is_written_and_last_stays(tmp_path: Path, monkeypatch):
    calls = []

    def room_for_two(folder: Path, needed: int) -> None:
        calls.append(needed)
        if len(calls) > 2:
            raise OSError(f"{folder} has 0.00 GB free")

    monkeypatch.setattr(checkpoints, "check_space", room_for_two)
    with pytest.raises(OSError, match=r"Step 3 is not saved: .* has 0\.00 GB free"):
        run(tmp_path, keep_last=9)
    assert steps(tmp_path) == [1, 2]
    assert os.readlink(tmp_path / LAST) == "step=2.ckpt"
    size = (tmp_path / "step=1.ckpt").stat().st_size
    assert size < calls[1] < 2 * size


@pytest.mark.parametrize(("others", "times"), [((), 3), ((AveragedWeights(0.5),), 4)])
def test_room_is_looked_for_before_the_first_one_too(tmp_path: Path, monkeypatch, others, times):
    asked = []
    monkeypatch.setattr(checkpoints, "check_space", lambda folder, needed: asked.append(needed))
    run(tmp_path, *others)
    assert asked[0] == int(checkpoints.MARGIN * times * 3 * 4)  # three weights of four bytes


def test_what_a_killed_run_left_is_removed_at_the_start(tmp_path: Path):
    (tmp_path / "step=9.ckpt.part").write_text("half")
    run(tmp_path)
    assert steps(tmp_path) == [5]


@pytest.mark.parametrize("background", [False, True])
def test_the_last_one_may_be_a_file_of_its_own(tmp_path: Path, background):
    run(tmp_path, monitor="score", save_last=True, background=background)
    assert steps(tmp_path) == [2]
    assert not (tmp_path / LAST).is_symlink()
    assert verify_sealed(tmp_path / LAST)
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 5


def test_a_run_that_nothing_asks_to_save_saves_its_end(tmp_path: Path):
    run(tmp_path, every_n_train_steps=0, every_n_epochs=0)
    assert steps(tmp_path) == [5]
    assert os.readlink(tmp_path / LAST) == "step=5.ckpt"


def test_no_newest_one_is_refused():
    with pytest.raises(ValueError, match="keep_last is a number of checkpoints, 1 or more, got 0"):
        Checkpoints(keep_last=0)
