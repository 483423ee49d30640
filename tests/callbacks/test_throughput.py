"""Rates and shares of the time, by a clock that moves only when it is told to."""

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from mhmoe_mm.batches import PretrainingBatch
from mhmoe_mm.callbacks import step_clock
from mhmoe_mm.callbacks.throughput import Throughput, num_samples, num_tokens
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from tests.callbacks.standin import Watched
from tests.tasks import batches
from tests.tasks.training import QUIET, loader


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: now[0])
    return now


class Slow:
    """Numbers that take 2 seconds to load."""

    def __init__(self, length: int, clock: list[float]):
        self.length, self.clock = length, clock

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        self.clock[0] += 2.0
        return index


class Timed(Watched):
    """Forward takes 3 seconds, backward 4, the optimizer 1, a validation batch 1000."""

    def __init__(self, clock: list[float]):
        super().__init__(self._work)
        self.clock = clock
        self.logged: list[dict[str, float]] = []

    def _work(self, stage: str, number: int) -> dict:
        self.clock[0] += 3.0 if stage == "train" else 1000.0
        return {}

    def backward(self, loss):
        super().backward(loss)
        self.clock[0] += 4.0

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.clock[0] += 1.0

    def log_dict(self, dictionary, *args, **kwargs):
        self.logged.append(dict(dictionary))


def run(clock, throughput: Throughput, length: int = 9, **options) -> list[dict[str, float]]:
    task = Timed(clock)
    trainer = Trainer(
        **QUIET, callbacks=[throughput], max_epochs=1, log_every_n_steps=3, num_sanity_val_steps=0,
        **options,
    )  # fmt: skip
    data = DataLoader(Slow(length, clock), batch_size=1)  # pyright: ignore[reportArgumentType]
    trainer.fit(task, data, loader([torch.zeros(1)]))
    return task.logged


def test_shares_of_the_time_are_those_of_the_parts(clock):
    for logged in run(clock, Throughput(skip_steps=0)):
        shares = {name.split("/")[1]: value for name, value in logged.items()}
        assert shares["data"] == pytest.approx(0.2)
        assert shares["forward"] == pytest.approx(0.3)
        assert shares["backward"] == pytest.approx(0.4)
        assert shares["optimizer"] == pytest.approx(0.1)
        assert shares["other"] == 0


def test_validations_and_first_batches_do_not_count(clock):
    logged = run(clock, Throughput(skip_steps=2), val_check_interval=2)
    assert len(logged) == 3
    for values in logged:
        assert values["throughput/backward"] == pytest.approx(0.4)


def test_operations_are_three_times_those_of_the_forward(clock):
    logged = run(clock, Throughput(peak_tflops=2e-12, skip_steps=0))
    rate = 3 * 2 * 1 / 10  # a multiply-add a batch of ten seconds
    assert logged[0]["throughput/tflops_per_s"] == pytest.approx(rate / 1e12)
    assert logged[0]["throughput/mfu"] == pytest.approx(rate / 2)
    none = run(clock, Throughput(count_operations=False))
    assert all("throughput/tflops_per_s" not in values for values in none)


def test_waiting_for_data_is_said_once(clock):
    with pytest.warns(UserWarning, match=r"20% of the time goes into waiting for data") as said:
        run(clock, Throughput(skip_steps=0))
    assert len([one for one in said if "waiting for data" in str(one.message)]) == 1


def test_samples_and_tokens_of_all_parts_of_a_batch_are_counted():
    image, text, pair = batches.images(3), batches.texts(5), batches.pairs(7)
    task = MaskedPretraining(batches.small_net(), NormalizedPixels(batches.PATCH))
    batch = PretrainingBatch(image, text, pair)
    assert num_samples(batch) == 15
    seen = 10 * ((batches.SIZE // batches.PATCH) ** 2 + 1)
    words = int((~text.pad).sum() + (~pair.pad).sum())
    assert num_tokens(batch, task) == seen + words
    assert num_samples(PretrainingBatch(None, text, None)) == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [({"peak_tflops": 0.0}, "peak_tflops is a positive"), ({"skip_steps": -1}, "skip_steps is 0")],
)
def test_numbers_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Throughput(**options)
