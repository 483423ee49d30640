"""Cross-entropy in chunks against cross-entropy of all scores at once."""

import pytest
import torch
import torch.nn.functional as F

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.losses import masked_cross_entropy
from mhmoe_mm.vocabulary_loss import token_losses, vocabulary_cross_entropy

ROWS, DIM, VOCAB = 101, 13, 37


def inputs(seed: int = 0):
    torch.manual_seed(seed)
    hidden = torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, DIM, dtype=torch.float64, requires_grad=True)
    target = torch.randint(VOCAB, (ROWS,))
    target[::7] = IGNORED
    return hidden, weight, target


@pytest.mark.parametrize("chunk", [1, 5, 86, 87, 1000])
def test_loss_counts_and_gradients_are_those_of_all_scores_at_once(chunk: int):
    hidden, weight, target = inputs()
    want = F.cross_entropy(hidden @ weight.T, target, ignore_index=IGNORED)
    grads = torch.autograd.grad(3 * want, (hidden, weight))
    got = vocabulary_cross_entropy(hidden, weight, target, chunk)
    torch.testing.assert_close(got.loss.double(), want, rtol=1e-6, atol=0)
    found = torch.autograd.grad(3 * got.loss, (hidden, weight))
    for one, other in zip(found, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    plain = masked_cross_entropy(hidden @ weight.T, target)
    assert (got.correct, got.predicted) == (plain.correct, plain.predicted)
    assert got.total is not None
    assert got.total.item() == pytest.approx(want.item() * 86, rel=1e-6)
    assert int(got.predicted) == 86


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_what_is_frozen_gets_no_gradient(trained: str):
    hidden, weight, target = inputs()
    (weight if trained == "hidden" else hidden).requires_grad_(False)
    vocabulary_cross_entropy(hidden, weight, target, 5).loss.backward()
    assert (hidden.grad is not None) == (trained == "hidden")
    assert (weight.grad is not None) == (trained == "weight")


def test_without_gradients_the_loss_is_the_same():
    hidden, weight, target = inputs()
    with torch.no_grad():
        silent = vocabulary_cross_entropy(hidden, weight, target, 5)
    trained = vocabulary_cross_entropy(hidden, weight, target, 5)
    torch.testing.assert_close(silent.loss.float(), trained.loss)
    assert (silent.correct, silent.predicted) == (trained.correct, trained.predicted)


def test_where_nothing_is_predicted_loss_and_gradients_are_zero():
    hidden, weight, _ = inputs()
    got = vocabulary_cross_entropy(hidden, weight, torch.full((ROWS,), IGNORED))
    got.loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    assert (got.loss, got.predicted) == (0, 0)
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_under_autocast_products_are_made_in_its_precision_and_sums_in_float32():
    hidden, weight, target = (part.detach() for part in inputs())
    hidden, weight = hidden.float().requires_grad_(), weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = vocabulary_cross_entropy(hidden, weight, target, 5)
    scores = (hidden.bfloat16() @ weight.bfloat16().T).float()
    want = F.cross_entropy(scores, target, ignore_index=IGNORED)
    assert got.loss.dtype == torch.float32
    torch.testing.assert_close(got.loss, want, rtol=1e-5, atol=0)
    got.loss.backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32
    want_grad = torch.autograd.grad(want, hidden)[0]
    torch.testing.assert_close(hidden.grad, want_grad, rtol=0.05, atol=1e-3)


def test_losses_of_single_rows_do_not_depend_on_the_chunk():
    hidden, weight, target = inputs()
    target = target.clamp(min=0)
    nats, right = token_losses(hidden, weight, target, 5)
    scores = hidden @ weight.T
    want = F.cross_entropy(scores, target, reduction="none")
    torch.testing.assert_close(nats.double(), want.detach(), rtol=1e-5, atol=1e-6)
    assert torch.equal(right, scores.argmax(dim=1) == target)


def test_a_chunk_of_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"chunk is a number of rows .* got 0"):
        vocabulary_cross_entropy(*inputs(), chunk=0)
