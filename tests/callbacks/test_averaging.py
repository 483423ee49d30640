"""Averaged weights: what they are, and that they are the same on any number of ranks."""

import json

import pytest
import torch
from lightning.pytorch import Callback
from safetensors import safe_open

from mhmoe_mm.callbacks.averaging import AveragedWeights
from mhmoe_mm.callbacks.finite_guard import FiniteGuard
from mhmoe_mm.checkpoint import read_weights
from mhmoe_mm.storage.checkpoint_io import TRAINING, read_any
from tests.callbacks.averaged import ALONE, BEFORE, DECAY, LAYOUTS, STEPS, Noted, trained
from tests.callbacks.test_finite_guard import BATCHES, Poisoned
from tests.parallel.worlds import ROWS
from tests.parallel.worlds import TRAININGS as TASKS
from tests.ranks import run_on_ranks
from tests.tasks.training import loader, train, validate

Weights = dict[str, torch.Tensor]


class Kept(Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.after: list[Weights] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.after.append({name: w.clone() for name, w in pl_module.state_dict().items()})


def averaged(after: list[Weights], decay: float = DECAY) -> Weights:
    """By the recurrence; buffers are those of the last."""
    average = after[0]
    for weights in after[1:]:
        average = {name: decay * w + (1 - decay) * weights[name] for name, w in average.items()}
    return {n: after[-1][n] if n.endswith("router.bias") else w for n, w in average.items()}


def same(found: Weights, wanted: Weights, tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        least = tolerance * max(weight.abs().max().item(), 1e-3)
        apart = (found[name] - weight).abs().max().item()
        assert apart <= least, (name, apart, least)


@pytest.fixture(scope="module")
def steps() -> tuple[list[Weights], list[float]]:
    """The weights of a training without an average, and the loss of each step's average."""
    torch.manual_seed(0)
    training, kept = TASKS["language, loss-free"], Kept()
    task = training.task()
    train(task, [training.batch(n) for n in range(STEPS)], callbacks=[kept], gradient_clip_val=0.5)
    losses = []
    for n in range(STEPS):
        task.load_state_dict(averaged(kept.after[: n + 1]))
        losses.append(validate(task, training.part(training.batch(STEPS), 0, ROWS))["val/loss"])
    return kept.after, losses


def test_the_average_is_validated_and_a_training_ends_with_it(steps):
    after, losses = steps
    weights, seen = trained(ALONE, 0, None, None)
    assert any(name.endswith("router.bias") for name in weights)  # a buffer that is not averaged
    same(weights, averaged(after), 1e-6)
    assert list(seen.values()) == pytest.approx(losses, rel=1e-6)


def test_steps_before_the_start_and_between_do_not_count(steps):
    after, _ = steps
    torch.manual_seed(0)
    training = TASKS["language, loss-free"]
    task, noted = training.task(), Noted()
    batches = [training.batch(n) for n in range(STEPS)]
    averaging = AveragedWeights(DECAY, start_step=2, every_n_steps=2)
    train(task, batches, callbacks=[averaging, noted], gradient_clip_val=0.5)
    same(task.state_dict(), averaged([after[1], after[3]]), 1e-6)


@pytest.mark.parametrize("guard_first", [True, False])
def test_a_step_that_the_guard_leaves_out_does_not_count(guard_first):
    guard, average = FiniteGuard(skip=1), AveragedWeights(DECAY)
    task, alone = Poisoned({1, 4}), Poisoned(set())
    train(task, BATCHES, callbacks=[guard, average] if guard_first else [average, guard])
    train(alone, [BATCHES[n] for n in (0, 2, 3, 5)], callbacks=[AveragedWeights(DECAY)])
    assert guard.left_out == 2
    same(task.state_dict(), alone.state_dict(), 0.0)


def test_accumulated_batches_are_one_step():
    kept, options = Kept(), {"accumulate_grad_batches": 2, "max_steps": 3}
    train(Poisoned(set()), BATCHES, callbacks=[kept], **options)
    task = Poisoned(set())
    train(task, BATCHES, callbacks=[AveragedWeights(DECAY)], **options)
    wanted = averaged(kept.after[1::2])
    found = task.state_dict()
    weights = dict(task.named_parameters())
    same({n: found[n] for n in weights}, {n: wanted[n] for n in weights}, 1e-6)


def test_a_checkpoint_after_the_end_goes_on_from_the_weights_that_trained(steps, tmp_path):
    after, _ = steps
    torch.manual_seed(0)
    training = TASKS["language, loss-free"]
    trainer = train(
        training.task(), [training.batch(n) for n in range(STEPS)],
        callbacks=[AveragedWeights(DECAY)], gradient_clip_val=0.5,
    )  # fmt: skip
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    content = read_any(tmp_path / "end.ckpt")
    same(content["state_dict"], averaged(after), 1e-6)
    same(content[TRAINING], after[-1], 1e-6)
    held = {name: w.clone() for name, w in trainer.lightning_module.state_dict().items()}
    trainer.validate(trainer.lightning_module, loader([training.batch(0)]), verbose=False)
    same(trainer.lightning_module.state_dict(), held, 0.0)  # an evaluation swaps nothing


def test_weights_of_16_bits_are_refused():
    with pytest.raises(ValueError, match="has 16 bits, in which an average does not move"):
        train(Poisoned(set()), BATCHES[:1], callbacks=[AveragedWeights()], precision="bf16-true")


@pytest.mark.parametrize(
    "options", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": 0}, {"every_n_steps": 0}]
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AveragedWeights(**options)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_layout_averages_alike_and_goes_on_in_every_other(steps, tmp_path):
    after, losses = steps
    for what in ("save", "resume"):
        for world in (1, 2):
            run_on_ranks(world, "tests.callbacks.averaged", str(tmp_path), what, limit_s=400)
    average = averaged(after)
    for layout in LAYOUTS:
        saved = tmp_path / f"{layout}.ckpt"
        assert saved.is_dir() == layout.sharded
        content = read_any(saved)
        same(content["state_dict"], averaged(after[:BEFORE]))
        same(content[TRAINING], after[BEFORE - 1])
        same(read_weights(saved), averaged(after[:BEFORE]))
        runs = [(str(layout), 0), *((f"{layout} to {other}", BEFORE) for other in LAYOUTS)]
        for name, done in runs:
            with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
                same({key: file.get_tensor(key) for key in file.keys()}, average)  # noqa: SIM118
                seen = json.loads(file.metadata()["losses"])
            assert seen == pytest.approx(
                {str(n + 1): losses[n] for n in range(done, STEPS)}, rel=1e-5
            ), name
