"""What a training took is measured without validations, waiting included."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from mhmoe_mm.callbacks import resources
from mhmoe_mm.callbacks.resources import Resources, peak_memory
from tests.callbacks.standin import Watched, numbers, quiet_trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that moves only when it is told to."""
    now = [100.0]
    monkeypatch.setattr(resources.time, "perf_counter", lambda: now[0])
    return now


def measured(folder: Path, clock: list[float], skip: int, **options) -> dict:
    """Batch n takes n seconds, a validation batch a thousand."""

    def work(stage: str, number: int) -> dict:
        clock[0] += number if stage == "train" else 1000.0
        return {}

    logger = CSVLogger(folder, name="lamps")
    trainer = quiet_trainer(folder, [Resources(skip)], logger, max_epochs=1, **options)
    trainer.fit(Watched(work), numbers(8, first=1), numbers(2))
    return json.loads((Path(logger.log_dir) / "resources.json").read_text())


def test_steps_are_timed_without_validations(tmp_path: Path, clock: list[float]):
    took = measured(tmp_path, clock, skip=0, val_check_interval=3)
    assert took["steps"] == 7
    assert took["seconds_per_step"] == took["median_seconds_per_step"] == 4.0
    assert took["device"] == "cpu"


def test_the_first_steps_do_not_count(tmp_path: Path, clock: list[float]):
    took = measured(tmp_path, clock, skip=2)
    assert (took["steps"], took["seconds_per_step"]) == (5, 5.0)


def test_a_fit_shorter_than_what_is_skipped_has_no_time(tmp_path: Path, clock: list[float]):
    took = measured(tmp_path, clock, skip=7)
    assert (took["steps"], took["seconds_per_step"]) == (0, None)


def test_accumulated_batches_are_one_step(tmp_path: Path, clock: list[float]):
    took = measured(tmp_path, clock, skip=0, accumulate_grad_batches=2)
    assert took["steps"] == 4  # 1 + 2, 3 + 4, 5 + 6, 7
    assert took["seconds_per_step"] == 7.0


def test_the_peak_of_memory_grows_with_what_is_held():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before + (64 << 20), dtype=torch.uint8)
    assert peak_memory(torch.device("cpu")) >= len(held)


def test_a_number_of_steps_below_zero_is_refused():
    with pytest.raises(ValueError, match="skip_steps is 0 or more, got -1"):
        Resources(-1)
