"""What is not a number never reaches the weights."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from mhmoe_mm.callbacks.finite_guard import RECORD, FiniteGuard, keys_of
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.moe import BiasBalancedRouter
from mhmoe_mm.optim import AdamW, WarmupConstant
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from tests.ranks import run_on_two_ranks
from tests.tasks.batches import PATCH, batch, small_net
from tests.tasks.training import train


class Poisoned(MaskedPretraining):
    """Comes to `poison` at some of the batches, in its loss or in its gradients alone."""

    def __init__(self, bad: set[int], poison: float = float("nan"), gradients: bool = False):
        torch.manual_seed(0)
        super().__init__(
            small_net(router=partial(BiasBalancedRouter, rate=0.1)),
            NormalizedPixels(PATCH),
            optimizer=partial(AdamW, lr=3e-3),
            schedule=WarmupConstant,
        )
        self.bad, self.poison, self.gradients = bad, poison, gradients

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        if batch_idx in self.bad and self.gradients:
            outputs["loss"].register_hook(lambda grad: grad * self.poison)
        elif batch_idx in self.bad:
            outputs["loss"] = outputs["loss"] * self.poison
        return outputs


BATCHES = [batch(seed=n) for n in range(6)]


def weights(task: Poisoned) -> list[torch.Tensor]:
    return [w.detach().clone() for w in task.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_run_ends_before_the_step_and_names_the_samples(tmp_path: Path, poison, gradients):
    good = Poisoned(set())
    train(good, BATCHES[:2])
    task = Poisoned({2}, poison, gradients)
    logger = CSVLogger(tmp_path)
    with pytest.raises(FloatingPointError, match=r"Step 3 has .* on rank 0, from the samples 0/0"):
        train(task, BATCHES, callbacks=[FiniteGuard()], logger=logger)
    assert same(weights(task), weights(good))  # the biases of the routers among them
    record = json.loads((Path(logger.log_dir) / RECORD).read_text())
    assert record["step"] == 3
    assert record["ranks"][0]["keys"] == keys_of(BATCHES[2])
    assert len(record["ranks"][0]["keys"]) == 3 + 4 + 5


def test_steps_that_are_left_out_change_nothing():
    guard = FiniteGuard(skip=2)
    task = Poisoned({1, 2, 4})
    train(task, BATCHES, callbacks=[guard])
    alone = Poisoned(set())
    train(alone, [BATCHES[n] for n in (0, 3, 5)])
    assert guard.left_out == 3
    assert same(weights(task), weights(alone))


def test_one_more_in_a_row_than_allowed_ends_the_run():
    guard = FiniteGuard(skip=2)
    with pytest.raises(FloatingPointError, match=r"Step 5 .*`--guard\.skip N`"):
        train(Poisoned({2, 3, 4}), BATCHES, callbacks=[guard])
    assert guard.left_out == 3


def test_a_bad_batch_among_accumulated_ones_spoils_its_step_only(tmp_path: Path):
    task, alone = Poisoned({3}), Poisoned(set())
    options = {"accumulate_grad_batches": 2, "max_steps": -1, "max_epochs": 1}
    train(task, BATCHES, callbacks=[FiniteGuard(skip=1)], **options)
    train(alone, [*BATCHES[:2], *BATCHES[4:]], **options)
    assert same(weights(task), weights(alone))


def test_turned_off_it_does_not_look():
    task = Poisoned({1})
    train(task, BATCHES[:3], callbacks=[FiniteGuard(enabled=False)])
    assert not all(w.isfinite().all() for w in weights(task))


@pytest.mark.dist
def test_all_ranks_end_where_one_has_a_bad_batch(tmp_path: Path):
    said = run_on_two_ranks("tests.callbacks.guarded_ranks", tmp_path)
    assert said.count("rank 1, from the samples") == 2, said
    record = json.loads(next(tmp_path.rglob(RECORD)).read_text())
    assert [rank["loss"] == "nan" for rank in record["ranks"]] == [False, True]


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="skip is a number of steps, 0 or more, got -1"):
        FiniteGuard(skip=-1)
