"""Means over predictions, cut any way, in any grad mode."""

import torch

from mhmoe_mm.batches import IGNORED
from mhmoe_mm.losses import Prediction, masked_cross_entropy, soft_binary_cross_entropy
from mhmoe_mm.metrics.prediction_mean import PredictionMean


def prediction(loss, correct, predicted):
    hits = None if correct is None else torch.tensor(correct)
    return Prediction(torch.tensor(loss), hits, torch.tensor(predicted))


def test_means_weigh_by_the_number_of_predictions():
    metric = PredictionMean()
    metric.update(prediction(1.0, 1, 2))
    metric.update(prediction(3.0, 5, 6))
    metric.update(prediction(0.0, 0, 0))
    means = metric.compute()
    assert means["loss"] == (2 * 1.0 + 6 * 3.0) / 8
    assert means["accuracy"] == 6 / 8


def test_the_mean_does_not_depend_on_how_rows_are_cut_into_batches():
    torch.manual_seed(0)
    logits, target = torch.randn(1009, 7), torch.randint(7, (1009,))
    target[::13] = IGNORED
    score, valid = torch.rand(1009, 7), target != IGNORED
    for loss in (
        lambda rows: masked_cross_entropy(logits[rows], target[rows]),
        lambda rows: soft_binary_cross_entropy(logits[rows], score[rows], valid[rows]),
    ):
        found = set()
        for size in (1, 2, 31, 1009):
            metric = PredictionMean()
            for rows in torch.randperm(1009).split(size):
                metric.update(loss(rows))
            found.add(metric.compute()["loss"].item())
        assert len(found) == 1


def test_what_is_neither_right_nor_wrong_has_only_a_loss():
    metric = PredictionMean()
    metric.update(prediction(0.5, None, 7))
    assert metric.compute() == {"loss": torch.tensor(0.5)}


def test_nothing_predicted_is_no_figure():
    metric = PredictionMean()
    metric.update(prediction(0.0, 0, 0))
    assert metric.compute() == {}


def test_a_metric_reset_in_inference_mode_counts_on_outside_it():
    metric = PredictionMean()
    with torch.inference_mode():
        metric.update(prediction(1.0, 1, 1))
        metric.reset()
    metric.update(prediction(2.0, 0, 1))
    assert metric.compute()["loss"] == 2.0
