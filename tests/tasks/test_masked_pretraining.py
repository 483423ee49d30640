"""Masked pretraining: what is predicted, how it is added up, how routers follow their loads."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from mhmoe_mm.batches import IGNORED, PretrainingBatch, normalized
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.models.multiway import ReleasedLayout, SharedLayout
from mhmoe_mm.models.vqkd_codes import VQKDCodes
from mhmoe_mm.moe import BiasBalancedRouter, MHMoE
from mhmoe_mm.optim import AdamW, WarmupConstant
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining, ObjectiveWeights
from tests.exported_tokenizer import export_tokenizer
from tests.tasks.batches import PATCH, SIZE, batch, small_net

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def task(seed=0, **options) -> MaskedPretraining:
    torch.manual_seed(seed)
    net = options.pop("net", None) or small_net()
    return MaskedPretraining(net, NormalizedPixels(PATCH), **options)


def loader(batches):
    return DataLoader(batches, batch_size=None)


def train(model, batches, **options):
    trainer = Trainer(**{"max_steps": len(batches), "log_every_n_steps": 1} | QUIET | options)
    trainer.fit(model, loader(batches))
    return trainer


def test_losses_are_those_of_every_masked_place_looked_up_one_by_one():
    model, part = task().eval(), batch().pair
    outcome = model.losses(PretrainingBatch(None, None, part))
    image = normalized(part.pixel)
    encoded = model.net(image, part.token, part.pad, part.masked)
    nats, hits, places = [], 0, 0
    for row in range(len(part.token)):
        for place in range(part.token.shape[1]):
            if (wanted := int(part.target[row, place])) != IGNORED:
                logits = model.text_head(encoded.hidden[row, encoded.split + place])
                nats.append(-logits.log_softmax(-1)[wanted])
                hits, places = hits + int(logits.argmax() == wanted), places + 1
    text = outcome.predictions["pair_text"]
    torch.testing.assert_close(text.loss, torch.stack(nats).mean())
    assert (int(text.correct), int(text.predicted)) == (hits, places)

    errors, patches = [], model.image_target.target(image)
    for row, patch in part.masked.nonzero().tolist():
        guess = model.image_head(encoded.hidden[row, 1 + patch])
        errors.append(F.mse_loss(guess, patches[row, patch]))
    picture = outcome.predictions["pair_image"]
    torch.testing.assert_close(picture.loss, torch.stack(errors).mean())
    assert picture.correct is None
    assert int(picture.predicted) == len(errors)


def test_hidden_patches_and_tokens_do_not_leak_into_their_prediction():
    model, part = task().eval(), batch().pair
    before = model.net(normalized(part.pixel), part.token, part.pad, part.masked).hidden
    pixel = part.pixel.clone()
    for row, patch in part.masked.nonzero().tolist():
        top, left = divmod(patch, 4)
        area = (row, slice(None), slice(top * 5, top * 5 + 5), slice(left * 5, left * 5 + 5))
        pixel[area] = 255 - pixel[area]
    after = model.net(normalized(pixel), part.token, part.pad, part.masked).hidden
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("parts", [("image",), ("text",), ("pair",), ("image", "text", "pair")])
def test_a_step_has_the_objectives_of_the_parts_it_was_given(parts):
    whole = batch()
    given = PretrainingBatch(*(getattr(whole, p) if p in parts else None for p in whole._fields))
    predictions = task().losses(given).predictions
    expected = {"image": ["image"], "text": ["text"], "pair": ["pair_image", "pair_text"]}
    assert list(predictions) == [name for part in parts for name in expected[part]]


def test_the_loss_is_the_weighted_sum_plus_balance_over_the_whole_step():
    weights = ObjectiveWeights(image=0.5, text=2.0, pair_image=3.0, pair_text=0.25)
    model = task(weights=weights, balance_weight=0.07, z_weight=0.003)
    outcome = model.losses(batch())
    model.log_dict = model.log = lambda *_, **__: None
    loss = model.training_step(batch(), 0)["loss"]
    expected = sum(
        getattr(weights, name) * prediction.loss for name, prediction in outcome.predictions.items()
    )
    (load,) = outcome.loads.values()
    expected = expected + 0.07 * load.balance + 0.003 * load.z_loss
    torch.testing.assert_close(loss, expected)
    whole = batch()
    sub_tokens = 2 * (
        (1 + 16) * (len(whole.image.pixel) + len(whole.pair.pixel))
        + int((~whole.text.pad).sum() + (~whole.pair.pad).sum())
    )
    assert load.token.sum() == sub_tokens
    assert load.names == ("image", "text")


@pytest.mark.parametrize("layout", [SharedLayout, ReleasedLayout])
def test_training_lowers_every_loss(layout):
    model = task(
        net=small_net(layout),
        optimizer=partial(AdamW, lr=3e-3),
        schedule=partial(WarmupConstant, warmup_steps=5),
    )
    before = {name: p.loss.item() for name, p in model.losses(batch()).predictions.items()}
    train(model, [batch()] * 60)
    after = {name: p.loss.item() for name, p in model.losses(batch()).predictions.items()}
    for name, loss in before.items():
        assert after[name] < 0.9 * loss, name


def test_validation_is_the_mean_over_predictions_however_batches_are_cut():
    model = task()
    whole = batch(n=6).pair
    cut = [type(whole)(*(field[a:b] for field in whole)) for a, b in ((0, 1), (1, 3), (3, 8))]
    results = []
    for batches in ([whole], cut):
        trainer = Trainer(**QUIET)
        data = loader([PretrainingBatch(None, None, part) for part in batches])
        results.append(trainer.validate(model, data, verbose=False)[0])
    assert results[0].keys() == results[1].keys()
    assert {"val/loss", "val/pair_text_accuracy", "val/pair_text_perplexity"} <= results[0].keys()
    perplexity = math.exp(results[0]["val/pair_text"])
    assert results[0]["val/pair_text_perplexity"] == pytest.approx(perplexity, rel=1e-5)
    for key, value in results[0].items():
        assert results[1][key] == pytest.approx(value, rel=1e-5), key


def test_a_balance_bias_moves_once_per_optimizer_step_by_the_load_of_all_its_batches():
    rate = 0.01
    model = task(net=small_net(router=partial(BiasBalancedRouter, rate=rate)))
    batches = [batch(seed=s) for s in range(3)]
    seen = [model.losses(b).loads["blocks.1.ffn.shared"].count.sum(0) for b in batches]
    counts = torch.stack(seen).sum(0)
    train(model, batches, accumulate_grad_batches=3, max_steps=1)
    layer = model.net.get_submodule("blocks.1.ffn.shared")
    assert isinstance(layer, MHMoE)
    expected = rate * torch.sign(counts.mean() - counts)
    torch.testing.assert_close(layer.router.bias, expected)


def test_steps_hand_out_detached_loads_under_the_paths_of_their_layers():
    model = task(net=small_net(ReleasedLayout))
    model.log_dict = model.log = lambda *_, **__: None
    loads = model.training_step(batch(), 0)["loads"]
    assert list(loads) == ["blocks.1.ffn.image", "blocks.1.ffn.text"]
    for name, load in loads.items():
        assert isinstance(model.net.get_submodule(name), MHMoE)
        assert not load.prob.requires_grad
    assert loads["blocks.1.ffn.image"].token[1] == 0 < loads["blocks.1.ffn.image"].token[0]


def test_a_target_of_another_patch_size_is_refused():
    with pytest.raises(ValueError, match="patches of 4 pixels, but the network reads patches of 5"):
        MaskedPretraining(small_net(), NormalizedPixels(4))


def test_the_default_optimizer_trains_in_mixed_precision_with_clipped_gradients():
    model = task(optimizer=partial(AdamW, lr=3e-3), schedule=WarmupConstant)
    before = model.losses(batch()).predictions["pair_text"].loss.item()
    trainer = train(model, [batch()] * 30, precision="bf16-mixed", gradient_clip_val=1.0)
    assert trainer.optimizers[0].defaults["fused"]
    after = model.losses(batch()).predictions["pair_text"].loss.item()
    assert after < 0.9 * before


def test_a_task_without_anything_to_predict_says_so():
    with pytest.raises(ValueError, match="MaskedPretraining has nothing to predict"):
        task().predict_step(batch(), 0)


def with_codes(folder, seed=0, net=None, change=1.0) -> MaskedPretraining:
    """Predicts the codes of a tokenizer; `change` moves its codes."""
    tokenizer = export_tokenizer(folder / f"tokenizer{seed}{change}", SIZE, PATCH)
    target = VQKDCodes(str(folder / f"tokenizer{seed}{change}"))
    target.tokenizer.codebook.code.mul_(change)
    assert target.size == tokenizer.num_codes
    torch.manual_seed(seed)
    return MaskedPretraining(net or small_net(), target)


def test_codes_of_a_tokenizer_are_predicted_and_it_stays_as_it_is(tmp_path):
    model = with_codes(tmp_path)
    before = {name: w.clone() for name, w in model.image_target.state_dict().items()}
    optimized = {id(p) for g in model.make_optimizer(model.named_parameters()).param_groups
                 for p in g["params"]}  # fmt: skip
    train(model, [batch(), batch(seed=1)])
    assert not optimized & {id(p) for p in model.image_target.parameters()}
    for name, weight in model.image_target.state_dict().items():
        assert torch.equal(weight, before[name]), name
    part = batch().image
    prediction = model.losses(PretrainingBatch(part, None, None)).predictions["image"]
    assert prediction.correct is not None
    assert int(prediction.predicted) == int(part.masked.sum())


def test_a_training_does_not_go_on_with_codes_that_mean_something_else(tmp_path):
    checkpoint = {"state_dict": with_codes(tmp_path).state_dict()}
    with_codes(tmp_path, seed=1).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="trained with other codes of image patches"):
        with_codes(tmp_path, seed=2, change=-1.0).on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"predicts 23 values or codes per patch, the .* has 75"):
        task().on_load_checkpoint(checkpoint)
