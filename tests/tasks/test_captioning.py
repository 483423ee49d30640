"""Captioning: tokens are predicted from those before them, captions are written and scored."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from mhmoe_mm.batches import IGNORED, normalized
from mhmoe_mm.models.caption_reader import caption_visible
from mhmoe_mm.models.generation import Decoding
from mhmoe_mm.moe import ExpertChoiceRouter
from mhmoe_mm.tasks.captioning import Captioning, CaptionLoss
from tests.tasks.batches import SEQ, VOCAB, captions, small_net
from tests.tasks.training import FAST, QUIET, loader, predict, rows, same_weights, train, validate

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
GREEDY = Decoding(num_beams=1, max_tokens=SEQ)


def tokenizer_file(folder, size=VOCAB - 3, specials=SPECIALS):
    words = [*specials, *(f"word{i}" for i in range(len(specials), size))]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(specials))
    path = folder / f"tokenizer{size}-{len(specials)}.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def make(tmp_path):
    def build(seed=0, **options) -> Captioning:
        torch.manual_seed(seed)
        net = options.pop("net", None) or small_net()
        given = {"tokenizer": tokenizer_file(tmp_path), "decoding": GREEDY} | FAST | options
        return Captioning(net, **given)

    return build


def sentences(n, length=4):
    """Captions `<s> words </s>` of which each image has one of its own."""
    batch = captions(n)
    token, pad = torch.ones(n, SEQ, dtype=torch.long), torch.ones(n, SEQ, dtype=torch.bool)
    for row in range(n):
        words = [5 + (3 * row + i * (row + 1)) % 30 for i in range(length)]
        token[row, : length + 2] = torch.tensor([0, *words, 2])
    pad[:, : length + 2] = False
    return batch._replace(token=token, pad=pad, target=torch.full_like(token, IGNORED))


def corrupted(batch, seed, share=0.6):
    draw = torch.Generator().manual_seed(seed)
    chosen = (torch.rand(batch.token.shape, generator=draw) < share) & ~batch.pad
    chosen[:, 0] = False
    target = torch.where(chosen, batch.token, IGNORED)
    return batch._replace(token=torch.where(chosen, 4, batch.token), target=target)


def referenced(batch, make):
    """The same images for an evaluation, with their own captions as references."""
    words = make().vocabulary
    texts = [words.decode(row.tolist()) for row in batch.token]
    return batch._replace(references=[[text] for text in texts])


def test_only_masked_tokens_of_valid_rows_are_predicted_from_what_stands_before(make):
    model, batch = make().eval(), captions(5)._replace(valid=torch.arange(5) < 4)
    prediction = model.losses(batch).predictions["token"]
    visible = caption_visible(17, SEQ)
    nats = []
    for row in range(4):
        image = normalized(batch.pixel[row : row + 1])
        for place in range(SEQ):
            if (wanted := int(batch.target[row, place])) != IGNORED:
                seen = batch.token[row : row + 1, : place + 1]
                hidden = model.net(image, seen, visible=visible[: 18 + place, : 18 + place]).hidden[
                    :, -1
                ]
                nats.append(-model.text_head(hidden)[0].log_softmax(dim=0)[wanted].item())
    assert prediction.loss.item() == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    assert int(prediction.predicted) == len(nats)


def test_the_worst_tokens_are_left_out_only_after_some_steps(make):
    batch = captions(5)
    losses = {}
    for after in (0, 1, 2):
        model = make(loss=CaptionLoss(drop_worst=0.5, drop_after=after))
        trainer = train(model, [batch] * 2)
        losses[after] = trainer.logged_metrics["train/token"]
    assert losses[2] > losses[1]
    untrained = [
        make(loss=CaptionLoss(drop_worst=share, drop_after=0)).train().losses(batch)
        for share in (0.0, 0.5)
    ]
    all_of_them, some = (outcome.predictions["token"] for outcome in untrained)
    assert some.loss < all_of_them.loss
    assert some.predicted == all_of_them.predicted


@pytest.mark.parametrize("beams", [1, 3])
def test_a_trained_network_writes_the_captions_it_was_shown(make, beams):
    batch = sentences(5)
    model = make(decoding=Decoding(num_beams=beams, max_tokens=SEQ), loss=CaptionLoss(0.0, 0.0))
    train(model, [corrupted(batch, seed) for seed in range(150)])
    expected = [model.vocabulary.decode(row.tolist()) for row in batch.token]
    assert model.eval().caption(batch.pixel) == expected
    result = validate(model, referenced(batch, make))
    assert result["val/cider_d"] > 9
    assert result["val/bleu_4"] == pytest.approx(1)


def test_captions_are_scored_the_same_however_they_are_cut_into_batches(make):
    model, batch = make(), referenced(sentences(7), make)
    filled = batch._replace(valid=torch.arange(7) < 6)
    whole = validate(model, rows(batch, 0, 6))
    assert validate(model, rows(filled, 0, 2), rows(filled, 2, 7)) == whole
    assert "val/cider_d" in whole
    assert "val/loss" not in whole  # nothing was masked


def test_an_evaluation_of_masked_captions_without_references_has_a_loss_alone(make):
    result = validate(make(), captions(5))
    assert {"val/loss", "val/token", "val/token_accuracy"} <= result.keys()
    assert "val/cider_d" not in result


def test_predictions_are_captions_of_ordinary_words_by_image(make):
    model, batch = make(), captions(5)._replace(valid=torch.arange(5) < 4)
    (found,) = predict(model, batch)
    assert [row["image_id"] for row in found] == ["image0", "image1", "image2", "image3"]
    for row in found:
        assert all(word.startswith("word") for word in row["caption"].split())


def test_a_test_prints_some_captions(make, said):
    batch = referenced(sentences(3), make)
    Trainer(**QUIET).test(make(), loader([batch]), verbose=False)
    assert all(f"image{i}: " in said.text for i in range(3))


def test_a_saved_task_loads_with_its_weights(make, tmp_path):
    model = make()
    train(model, [captions(5)] * 2).save_checkpoint(tmp_path / "a.ckpt")
    again = Captioning.load_from_checkpoint(
        tmp_path / "a.ckpt", net=small_net(), tokenizer=tokenizer_file(tmp_path),
        decoding=GREEDY, weights_only=True,
    )  # fmt: skip
    assert same_weights(model, again)


def test_what_cannot_write_captions_is_refused_before_training(make, tmp_path):
    with pytest.raises(ValueError, match="ExpertChoiceRouter, is not causal"):
        make(net=small_net(router=partial(ExpertChoiceRouter)))
    with pytest.raises(ValueError, match="max_tokens=32 are longer than the network's max_text=11"):
        make(decoding=Decoding())
    with pytest.raises(ValueError, match="has 61 tokens, more than the network's vocab_size=43"):
        make(tokenizer=tokenizer_file(tmp_path, size=61))
    with pytest.raises(ValueError, match="lacks the special tokens <mask>"):
        make(tokenizer=tokenizer_file(tmp_path, specials=SPECIALS[:4]))
    with pytest.raises(ValueError, match=r"no\.json does not exist: train one"):
        make(tokenizer=str(tmp_path / "no.json"))
