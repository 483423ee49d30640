import math

import pytest
import torch
import torch.nn.functional as F

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.losses import (
    caption_cross_entropy,
    contrastive,
    masked_cross_entropy,
    perplexity,
    soft_cross_entropy,
)


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


def test_the_worst_captioned_tokens_are_left_out_and_the_rest_is_smoothed():
    draw = torch.Generator().manual_seed(4)
    logits, target = torch.randn(11, 7, generator=draw), torch.randint(7, (11,), generator=draw)
    each = []
    for row in range(11):
        wanted = torch.full((7,), 0.1 / 6)
        wanted[target[row]] = 0.9
        log_prob = logits[row].log_softmax(dim=0)
        each.append(sum(w * (w.log() - p) for w, p in zip(wanted, log_prob, strict=True)).item())
    for drop, kept in ((0.0, 11), (0.2, 8), (0.5, 5), (0.99, 1)):
        got = caption_cross_entropy(logits, target, 0.1, drop)
        assert got.loss.item() == pytest.approx(sum(sorted(each)[:kept]) / kept, rel=1e-4)
        assert int(got.predicted) == 11
        assert int(got.correct) == int((logits.argmax(dim=1) == target).sum())


def test_left_out_tokens_have_no_gradient():
    logits = torch.randn(11, 7, requires_grad=True)
    caption_cross_entropy(logits, torch.arange(11) % 7, 0.1, 0.5).loss.backward()
    assert logits.grad is not None
    assert int((logits.grad.abs().amax(dim=1) > 0).sum()) == 5


def test_without_smoothing_a_captioned_token_costs_its_cross_entropy():
    logits, target = torch.randn(5, 7), torch.randint(7, (5,))
    torch.testing.assert_close(
        caption_cross_entropy(logits, target, 0.0).loss, masked_cross_entropy(logits, target).loss
    )


def test_no_captioned_tokens_cost_nothing():
    logits = torch.randn(0, 7, requires_grad=True)
    got = caption_cross_entropy(logits, torch.zeros(0, dtype=torch.long), 0.1, 0.2)
    got.loss.backward()
    assert (got.loss.item(), int(got.predicted)) == (0, 0)


def test_every_image_finds_its_text_and_every_text_its_image():
    image, text = (F.normalize(torch.randn(5, 3), dim=1) for _ in range(2))
    scale, valid = torch.tensor(7.0), torch.tensor([True, True, False, True, True])
    rows, total, hits = [0, 1, 3, 4], 0.0, 0
    for place, row in enumerate(rows):
        of_texts = torch.stack([7.0 * image[row] @ text[other] for other in rows])
        of_images = torch.stack([7.0 * text[row] @ image[other] for other in rows])
        for score in (of_texts, of_images):
            total -= score.log_softmax(dim=0)[place].item() / 2
        hits += int(of_texts.argmax() == place)
    got = contrastive(image, text, scale, valid)
    assert int(got.correct) == hits
    assert got.loss.item() == pytest.approx(total / 4, rel=1e-5)
    assert int(got.predicted) == 4


def test_vectors_are_compared_in_float32_in_mixed_precision_too():
    image, text = (F.normalize(torch.randn(5, 3), dim=1) for _ in range(2))
    scale, valid = torch.tensor(100.0), torch.ones(5, dtype=torch.bool)
    expected = contrastive(image, text, scale, valid).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive(image, text, scale, valid).loss, expected)


def test_captions_of_the_same_image_are_no_wrong_answers():
    image, text = (F.normalize(torch.randn(4, 3), dim=1) for _ in range(2))
    ids, valid = torch.tensor([8, 9, 8, 7]), torch.ones(4, dtype=torch.bool)
    got = contrastive(image, text, torch.tensor(3.0), valid, ids)
    total = 0.0
    for row in range(4):
        others = [o for o in range(4) if o == row or ids[o] != ids[row]]
        for query, candidates in ((image[row], text), (text[row], image)):
            score = torch.stack([3.0 * query @ candidates[other] for other in others])
            total -= score.log_softmax(dim=0)[others.index(row)].item() / 2
    assert got.loss.item() == pytest.approx(total / 4, rel=1e-5)


def test_smoothed_mixtures_cost_what_their_parts_do():
    logits, target = torch.randn(3, 5), torch.tensor([1, 4, 0])
    one, other = (F.one_hot(t, 5).float() for t in (target, target.flip(0)))
    mixed = soft_cross_entropy(logits, 0.3 * one + 0.7 * other, 0.1).loss
    parts = [masked_cross_entropy(logits, t, 0.1).loss for t in (target, target.flip(0))]
    torch.testing.assert_close(mixed, 0.3 * parts[0] + 0.7 * parts[1])


@pytest.mark.parametrize(("smoothing", "drop"), [(1.0, 0.0), (0.1, 1.0), (0.1, -0.1)])
def test_impossible_shares_are_refused(smoothing: float, drop: float):
    with pytest.raises(ValueError, match=r"in \[0, 1\), but is"):
        caption_cross_entropy(torch.randn(3, 5), torch.zeros(3, dtype=torch.long), smoothing, drop)
