"""Sentences about two images."""

import pytest
import torch

from mhmoe_mm.batches import normalized
from mhmoe_mm.tasks.nlvr2 import NLVR2
from tests.tasks.batches import small_net, statements
from tests.tasks.training import FAST, predict, rows, same_weights, train, validate


def task(seed=0, **options) -> NLVR2:
    torch.manual_seed(seed)
    return NLVR2(small_net(), **(FAST | options))


def test_the_head_reads_image_and_text_of_the_left_pair_then_of_the_right_one():
    model, batch = task().eval(), statements(5)
    seen = []
    for side in (batch.left, batch.right):
        encoded = model.net(normalized(side), batch.token, batch.pad)
        seen += [encoded.hidden[:, 0], encoded.hidden[:, encoded.split]]
    torch.testing.assert_close(model.scores(batch)[0], model.head(torch.cat(seen, dim=1)))


def test_training_tells_true_from_false():
    model, batch = task(), statements(10)
    train(model, [batch] * 80)
    assert validate(model, batch)["val/accuracy"] == 1.0
    assert validate(model, batch)["val/consistency"] == 1.0


def test_consistency_needs_every_pair_of_a_sentence():
    model, batch = task().eval(), statements(8)
    right = model.scores(batch)[0].argmax(dim=1) == batch.label
    result = validate(model, rows(batch, 0, 3), rows(batch, 3, 8))
    assert result["val/accuracy"] == pytest.approx(right.float().mean().item())
    assert result["val/consistency"] == pytest.approx(
        right.view(4, 2).all(dim=1).float().mean().item()
    )


def test_rows_that_fill_up_a_batch_change_no_figure():
    model = task()
    filled = statements(7)._replace(valid=torch.arange(7) < 5)
    expected = validate(model, rows(statements(7), 0, 5))
    for name, value in validate(model, filled).items():
        assert value == pytest.approx(expected[name], rel=1e-5), name


def test_predictions_are_true_or_false_by_identifier():
    model, batch = task().eval(), statements(5)._replace(valid=torch.arange(5) < 4)
    judged = model.scores(batch)[0].argmax(dim=1).tolist()
    (found,) = predict(model, batch)
    names = ["False", "True"]
    assert found == [
        {"identifier": batch.identifier[i], "label": names[judged[i]]} for i in range(4)
    ]


def test_a_saved_task_loads_with_its_weights(tmp_path):
    model = task()
    train(model, [statements(5)] * 2).save_checkpoint(tmp_path / "a.ckpt")
    again = NLVR2.load_from_checkpoint(tmp_path / "a.ckpt", net=small_net(), weights_only=True)
    assert same_weights(model, again)
