"""Classes of images, mixed and smoothed in training only."""

import pytest
import torch

from mhmoe_mm.tasks.image_classification import ImageClassification
from tests.tasks.batches import classes, small_net
from tests.tasks.training import FAST, predict, rows, same_weights, train, validate


def task(seed=0, **options) -> ImageClassification:
    torch.manual_seed(seed)
    return ImageClassification(small_net(), num_classes=5, **(FAST | options))


def test_training_finds_the_classes():
    model, batch = task(), classes(11)
    train(model, [batch] * 60)
    assert validate(model, batch)["val/class_accuracy"] == 1.0


@pytest.mark.parametrize("kind", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_training_on_mixed_images_finds_the_classes_too(kind):
    model, batch = task(label_smoothing=0.1, **kind), classes(10)
    train(model, [batch] * 150)
    assert validate(model, batch)["val/class_accuracy"] > 0.7


def test_a_mixed_batch_has_the_loss_of_both_classes_in_their_shares():
    model, batch = task(mixup=1.0).train(), classes(4)
    seen = {}
    model.mixtures = [lambda image, label: seen.setdefault("mixed", mixed(image, label))]

    def mixed(image, label):
        one = torch.nn.functional.one_hot(label, 5).float()
        return 0.3 * image + 0.7 * image.flip(0), 0.3 * one + 0.7 * one.flip(0)

    prediction = model.losses(batch).predictions["class"]
    image, _ = seen["mixed"]
    log_prob = model.scores(image)[0].log_softmax(dim=1)
    row = torch.arange(4)
    expected = -0.3 * log_prob[row, batch.label] - 0.7 * log_prob[row, batch.label.flip(0)]
    torch.testing.assert_close(prediction.loss, expected.mean())
    assert prediction.correct is None


def test_an_evaluation_neither_mixes_nor_smooths():
    batch = classes(7)
    plain = validate(task(), batch)
    mixing = validate(task(mixup=0.8, cutmix=1.0, label_smoothing=0.3), batch)
    assert mixing == plain


def test_rows_that_fill_up_a_batch_change_no_figure():
    model = task()
    filled = classes(7)._replace(valid=torch.arange(7) < 5)
    expected = validate(model, rows(classes(7), 0, 5))
    for name, value in validate(model, filled).items():
        assert value == pytest.approx(expected[name], rel=1e-5), name


def test_predictions_are_classes_by_key():
    model, batch = task().eval(), classes(5)._replace(valid=torch.arange(5) < 4)
    chosen = model.predict_step(batch, 0)
    (found,) = predict(model, batch)
    assert found == chosen
    assert [row["key"] for row in found] == batch.key[:4]
    model.names = ["ant", "bee", "cat", "dog", "eel"]
    named = model.predict(batch)
    assert [row["name"] for row in named[:4]] == [model.names[row["class"]] for row in found]


def test_a_saved_task_loads_with_its_weights(tmp_path):
    model = task()
    train(model, [classes(5)] * 2).save_checkpoint(tmp_path / "a.ckpt")
    again = ImageClassification.load_from_checkpoint(
        tmp_path / "a.ckpt", net=small_net(), num_classes=5, weights_only=True
    )
    assert same_weights(model, again)


def test_a_negative_share_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1 and 0"):
        task(mixup=-1)
