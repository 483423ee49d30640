"""Retrieval: images and texts are encoded alone, the temperature is learned and may be limited."""

import math

import pytest
import torch

from mhmoe_mm.tasks.retrieval import Retrieval
from tests.tasks.batches import captioned, small_net
from tests.tasks.training import FAST, predict, rows, same_weights, train, validate


def task(seed=0, **options) -> Retrieval:
    torch.manual_seed(seed)
    return Retrieval(small_net(), **(FAST | options))


def test_vectors_have_length_one_and_do_not_depend_on_what_they_are_compared_with():
    model, batch = task().eval(), captioned(5)
    image, _ = model.embed_image(batch.pixel)
    text, _ = model.embed_text(batch.token, batch.pad)
    for vector in (image, text):
        torch.testing.assert_close(vector.norm(dim=1), torch.ones(5))
    (found,) = predict(model, batch._replace(token=batch.token.flip(0), pad=batch.pad.flip(0)))
    torch.testing.assert_close(torch.stack([row["image"] for row in found]), image)
    torch.testing.assert_close(torch.stack([row["text"] for row in found]), text.flip(0))


def test_a_steps_loads_are_of_images_and_texts_together():
    batch = captioned(5)
    (load,) = task().losses(batch).loads.values()
    assert load.token.tolist() == [2 * 5 * 17, 2 * int((~batch.pad).sum())]


def test_training_lets_images_and_texts_find_each_other():
    model, batch = task(), captioned(11)
    before = model.losses(batch).predictions["contrast"].loss.item()
    train(model, [batch] * 80)
    after = validate(model, batch)
    assert model.losses(batch).predictions["contrast"].loss.item() < 0.3 * before
    assert after["val/mean_recall"] == 1.0
    assert after["val/image_to_text_recall_at_1"] == 1.0


def test_recall_is_that_of_the_whole_evaluation_however_it_is_cut():
    model, batch = task(), captioned(15, same=3)
    parts = [rows(batch, 0, 5), rows(batch, 5, 6), rows(batch, 6, 13)]
    whole = validate(model, rows(batch, 0, 13))
    assert whole == validate(model, *parts)
    filled = batch._replace(valid=torch.arange(15) < 13)
    assert whole == validate(model, rows(filled, 0, 9), rows(filled, 9, 15))


def test_the_temperature_is_learned_and_shown():
    model = task(scale=5.0)
    trainer = train(model, [captioned(5)] * 3)
    assert trainer.logged_metrics["train/scale"] != 5.0
    assert model.logit_scale.exp().item() == pytest.approx(
        trainer.logged_metrics["train/scale"].item(), rel=0.1
    )


def test_the_temperature_stays_within_its_limit_and_finds_back():
    model = task(scale=5.0, max_scale=6.0)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50.0))
    loss = model.train().losses(captioned(5)).predictions["contrast"].loss
    assert model.logit_scale.exp().item() == pytest.approx(6.0)
    loss.backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.abs() > 0


def test_another_caption_of_the_same_image_is_wrong_only_if_so_wished():
    batch = captioned(6, same=2)
    strict, mild = (task(same_image_is_wrong=wrong).losses(batch) for wrong in (True, False))
    assert mild.predictions["contrast"].loss < strict.predictions["contrast"].loss - 0.1


def test_a_saved_task_loads_with_its_weights(tmp_path):
    model = task()
    train(model, [captioned(5)] * 2).save_checkpoint(tmp_path / "a.ckpt")
    again = Retrieval.load_from_checkpoint(tmp_path / "a.ckpt", net=small_net(), weights_only=True)
    assert same_weights(model, again)
    assert again.logit_scale.exp().item() != pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize(("scale", "limit"), [(0.0, None), (14.0, 10.0)])
def test_an_impossible_scale_is_refused(scale, limit):
    with pytest.raises(ValueError, match=f"scale={scale} and max_scale={limit}"):
        task(scale=scale, max_scale=limit)
