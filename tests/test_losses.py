import math

import pytest
import torch

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.losses import masked_cross_entropy, perplexity


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_the_mean_over_predicted_rows_of_a_sum_over_the_vocabulary(label_smoothing: float):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 5, 7, generator=generator)
    target = torch.randint(7, (3, 5), generator=generator)
    target[0] = IGNORED
    target[2, 1] = IGNORED
    rows = [(b, s) for b in range(3) for s in range(5) if target[b, s] != IGNORED]
    wanted, correct = 0.0, 0
    for b, s in rows:
        log_prob = logits[b, s] - torch.logsumexp(logits[b, s], dim=0)
        for token in range(7):
            weight = label_smoothing / 7
            weight += 1 - label_smoothing if token == target[b, s] else 0
            wanted -= weight * log_prob[token].item()
        correct += int(logits[b, s].argmax() == target[b, s])
    got = masked_cross_entropy(logits, target, label_smoothing)
    assert got.loss.item() == pytest.approx(wanted / len(rows), rel=1e-5)
    assert (got.correct.item(), got.predicted.item()) == (correct, len(rows))


def test_ignored_rows_have_no_gradient():
    logits = torch.randn(5, 11, requires_grad=True)
    masked_cross_entropy(logits, torch.tensor([3, IGNORED, 0, IGNORED, 10])).loss.backward()
    assert logits.grad is not None
    assert logits.grad[[1, 3]].abs().max() == 0
    assert logits.grad[[0, 2, 4]].abs().amax(dim=1).min() > 0


@pytest.mark.parametrize("rows", [0, 3])
def test_without_predicted_rows_loss_and_gradient_are_zero(rows: int):
    logits = torch.randn(rows, 11, requires_grad=True)
    got = masked_cross_entropy(logits, torch.full((rows,), IGNORED))
    got.loss.backward()
    assert (got.loss.item(), got.correct.item(), got.predicted.item()) == (0, 0, 0)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.full((1009, 3), 0.5, dtype=torch.bfloat16)
    loss = masked_cross_entropy(logits, torch.ones(1009, dtype=torch.int64)).loss
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)


def test_counts_of_batches_add_up_to_the_accuracy_of_the_whole():
    logits = torch.randn(13, 5)
    target = torch.randint(5, (13,))
    target[::4] = IGNORED
    parts = [masked_cross_entropy(logits[i], target[i]) for i in (slice(0, 3), slice(3, 13))]
    whole = masked_cross_entropy(logits, target)
    assert sum(p.correct for p in parts) == whole.correct
    assert sum(p.predicted for p in parts) == whole.predicted
    assert sum(p.loss * p.predicted for p in parts).item() == pytest.approx(
        (whole.loss * whole.predicted).item(), rel=1e-5
    )


def test_smoothing_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\), but is 1.0"):
        masked_cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 1.0)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary():
    loss = masked_cross_entropy(torch.zeros(5, 17), torch.arange(5)).loss
    assert perplexity(loss).item() == pytest.approx(17, rel=1e-5)
