"""Language modelling by the numbers, against one token after another."""

import math

import pytest
import torch

from mhmoe_mm.batches import IGNORED, LanguageBatch
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from tests.language import EXPERTS, LANGUAGES, SEQ, rows_of_text, small_decoder
from tests.tasks.training import FAST, same_weights, train, validate


def task(seed: int = 0, **options) -> LanguageModeling:
    torch.manual_seed(seed)
    return LanguageModeling(small_decoder(), **(FAST | options))


@torch.no_grad()
def nats_by_hand(model: LanguageModeling, batch: LanguageBatch) -> list[list[float]]:
    """What every target of every row costs, each asked for by itself after what precedes it."""
    found = []
    for token, target, document in zip(batch.token, batch.target, batch.document, strict=True):
        row = []
        for place in range(len(token)):
            if target[place] == IGNORED:
                continue
            own = document[: place + 1] == document[place]
            seen = token[: place + 1] if model.across_documents else token[: place + 1][own]
            hidden = model.net(seen[None]).hidden[0, -1]
            log_prob = model.net.scores(hidden).double().log_softmax(dim=0)
            row.append(-log_prob[target[place]].item())
        found.append(row)
    return found


@pytest.mark.parametrize("across", [True, False])
def test_the_loss_is_the_mean_over_tokens_that_are_asked_for_one_after_another(across):
    model, batch = task(across_documents=across), rows_of_text(5)
    found = model.losses(batch).predictions["text"]
    each = [nats for row in nats_by_hand(model, batch) for nats in row]
    assert found.predicted == len(each) == 5 * SEQ - 3
    assert found.loss.item() == pytest.approx(math.fsum(each) / len(each), rel=1e-5)
    assert found.total.item() == pytest.approx(math.fsum(each), rel=1e-5)


def test_earlier_documents_are_seen_or_hidden_as_the_task_says():
    batch = rows_of_text(5)
    later = batch.document == batch.document.amax(dim=1, keepdim=True)
    assert later.any(dim=1).all()
    assert not later.all(dim=1).any()
    other = batch._replace(
        token=torch.where(later, batch.token, batch.token.flip(0)),
        target=torch.where(later, batch.target, IGNORED),
    )
    same = batch._replace(target=other.target)
    for across in (True, False):
        model = task(across_documents=across)
        found, changed = (model.losses(rows).predictions["text"].loss for rows in (same, other))
        assert torch.isclose(found, changed, rtol=1e-6) != across


@pytest.mark.parametrize("across", [True, False])
def test_an_evaluation_counts_tokens_and_bytes_of_all_rows_and_of_each_language(across):
    model = task(across_documents=across)
    batches = [rows_of_text(5, seed=1), rows_of_text(4, seed=2)]
    logged = validate(model, *batches)
    model.eval()
    rows = [row for batch in batches for row in nats_by_hand(model, batch)]
    language = [LANGUAGES[i] for batch in batches for i in batch.language]
    num_bytes = [size for batch in batches for size in batch.num_bytes.tolist()]
    expected = {}
    for suffix in ("", *(f"_{code}" for code in LANGUAGES)):
        of = [i for i, code in enumerate(language) if suffix in ("", f"_{code}")]
        nats, tokens = math.fsum(sum(rows[i]) for i in of), sum(len(rows[i]) for i in of)
        expected[f"val/perplexity{suffix}"] = math.exp(nats / tokens)
        expected[f"val/bits_per_byte{suffix}"] = nats / math.log(2) / sum(num_bytes[i] for i in of)
        if not suffix:
            expected["val/text"] = expected["val/loss"] = nats / tokens
    assert {name: logged[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    scores = [name for name in logged if "perplexity" in name or "bits" in name]
    assert len(scores) == 2 * (1 + len(LANGUAGES))


def test_accuracy_is_the_share_of_targets_with_the_largest_score():
    model, batch = task(), rows_of_text(7)
    scores = model.eval().net.scores(model.net(batch.token).hidden)
    asked = batch.target != IGNORED
    right = (scores.argmax(dim=2) == batch.target)[asked].float().mean().item()
    assert 0 < right < 1
    assert validate(model, batch)["val/text_accuracy"] == pytest.approx(right)


def test_rows_that_only_fill_a_batch_count_nowhere():
    model, batch = task(), rows_of_text(4)
    filled = batch._replace(
        **{name: torch.cat([getattr(batch, name)] * 2) for name in batch._fields[:5]},
        valid=torch.arange(8) < 4,
        key=batch.key * 2,
    )
    assert validate(model, filled) == pytest.approx(validate(model, batch), rel=1e-6)
    model.eval()
    found, expected = model.evaluate(filled), model.evaluate(batch)
    model.score.reset()
    assert found.predictions["text"].predicted == expected.predictions["text"].predicted
    for name, load in expected.loads.items():
        assert torch.equal(found.loads[name].count, load.count)
    model.train()
    losses = [model.losses(rows).predictions["text"].loss.item() for rows in (filled, batch)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_loads_are_told_apart_by_language():
    model = task()
    for outcome in (model.losses(rows_of_text(5)), model.eval().evaluate(rows_of_text(5))):
        assert list(outcome.loads) == ["layers.1.ffn"]
        load = outcome.loads["layers.1.ffn"]
        assert load.names == LANGUAGES
        sub_tokens = model.net.get_submodule("layers.1.ffn").num_heads * SEQ
        assert load.count.shape == (len(LANGUAGES), EXPERTS)
        assert load.token.tolist() == [2 * sub_tokens, 2 * sub_tokens, sub_tokens]


def test_the_number_of_scores_that_exist_together_changes_no_number():
    batch, found = rows_of_text(5), []
    for chunk in (1, 7, 4096):
        model = task(loss_chunk=chunk)
        loss = model.losses(batch).predictions["text"].loss
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        logged = torch.tensor(list(validate(model, batch).values()))
        found.append(torch.cat([loss.detach()[None], gradient, logged]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="loss_chunk is a number of tokens, 1 or more, got 0"):
        task(loss_chunk=0)


def test_training_learns_a_text_by_heart():
    model, batch = task(), rows_of_text(3)
    before = validate(model, batch)
    train(model, [batch] * 150)
    after = validate(model, batch)
    # A first token of a row is guessed, as are words after which several came.
    assert after["val/perplexity"] < 3 < 20 < before["val/perplexity"]
    assert after["val/text_accuracy"] > 0.8


def test_a_saved_task_loads_with_its_weights(tmp_path):
    model = task()
    train(model, [rows_of_text(3)] * 2).save_checkpoint(tmp_path / "a.ckpt")
    again = LanguageModeling.load_from_checkpoint(
        tmp_path / "a.ckpt", net=small_decoder(), weights_only=True
    )
    assert same_weights(model, again)
