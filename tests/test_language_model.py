"""A trained language model answers about texts as its network does, token by token."""

import math
import shutil
from itertools import chain
from pathlib import Path

import pytest
import torch

import mhmoe_mm
from mhmoe_mm.inference import METHODS, Model
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.language_model import ROUND, LanguageModel
from mhmoe_mm.models.sampling import Sampling
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from tests.datamodules.text_files import letter_tokenizer
from tests.language import LINE, MAX_TEXT, VOCAB, small_decoder


@pytest.fixture(scope="module")
def model(language_run: Path) -> Model:
    return mhmoe_mm.load(language_run)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A model that finds everything about as likely; its network has more ids than there are
    tokens.
    """
    torch.manual_seed(0)
    path = letter_tokenizer(tmp_path_factory.mktemp("letters") / "tokenizer.json")
    net = small_decoder(max_text=MAX_TEXT).eval()
    with torch.no_grad():
        net.token_embedding.weight.mul_(20)  # so that some letters are likelier than others
    return LanguageModel(net, Tokenizer(path), "here", at_a_time=3)


@pytest.fixture
def endless(untrained: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """The same, but its texts never end."""
    scores, eos = untrained.net.scores, torch.tensor(untrained.tokenizer.eos)

    def of_the_others(hidden: torch.Tensor) -> torch.Tensor:
        return scores(hidden).index_fill(-1, eos, -torch.inf)

    monkeypatch.setattr(untrained.net, "scores", of_the_others)
    return untrained


@torch.no_grad()
def next_log_probs(asked: LanguageModel, before: str) -> torch.Tensor:
    """Of every token after a text that the network can read at once."""
    token = [asked.tokenizer.eos, *asked.tokenizer.encode_whole(before)[0]]
    return asked.net.scores(asked.net(torch.tensor([token])).hidden[0, -1]).log_softmax(dim=0)


def log_prob(asked: LanguageModel, text: str, after: str = "") -> float:
    """Of a text of letters, one after another."""
    ids = asked.tokenizer.encode_whole(text)[0]
    each = (next_log_probs(asked, after + text[:i])[id].item() for i, id in enumerate(ids))
    return math.fsum(each)


def test_a_checkpoint_alone_is_enough_elsewhere(language_run, tmp_path, monkeypatch):
    checkpoint = language_run / "checkpoints/last.ckpt"
    original = (language_run.parents[2] / "moved/tokenizer.json").read_text()
    shutil.copy(checkpoint, tmp_path / "a.ckpt")
    monkeypatch.chdir(tmp_path)
    model = mhmoe_mm.load("a.ckpt")
    assert not model.task.training
    kept = torch.load(checkpoint, weights_only=True)
    weights = model.task.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in kept["state_dict"].items())
    assert model.texts.tokenizer.content == original
    assert repr(model) == (
        "Model(LanguageModeling from a.ckpt on cpu: generate, log_likelihood, perplexity; "
        f"texts, {MAX_TEXT} tokens at a time)"
    )
    torch.save({name: value for name, value in kept.items() if name != "texts"}, "old.ckpt")
    with pytest.raises(ValueError, match="keeps no tokenizer"):
        mhmoe_mm.load("old.ckpt")
    old = mhmoe_mm.load("old.ckpt", tokenizer=language_run.parents[2] / "moved/tokenizer.json")
    assert old.log_likelihood(LINE) == model.log_likelihood(LINE)


def test_a_document_known_by_heart_is_written_and_ended(model: Model):
    assert model.generate("", temperature=0) == LINE
    assert model.generate(["so m", LINE, "so"], temperature=0) == [LINE[4:], "", LINE[2:]]
    assert model.generate("so", max_tokens=5, temperature=0) == LINE[2:7]
    assert model.perplexity(LINE).perplexity < 1.1 < 10 < model.perplexity("zebra").perplexity


def test_the_likeliest_letters_are_those_of_one_after_another(untrained: LanguageModel):
    prompts, greedy = ["a", "so much", "", "the", "thy", "not"], Sampling(temperature=0)
    expected = []
    for prompt in prompts:
        text = prompt
        for _ in range(11):
            scores = next_log_probs(untrained, text)
            best = max(
                [*untrained.tokenizer.ordinary, untrained.tokenizer.eos],
                key=scores.tolist().__getitem__,
            )
            if best == untrained.tokenizer.eos:
                break
            text += untrained.tokenizer.decode([best])
        expected.append(text[len(prompt) :])
    assert untrained.write(prompts, 11, greedy) == expected
    assert any(len(text) == 11 for text in expected)
    assert untrained.write(prompts, 11, Sampling(top_k=1)) == expected


def test_only_tokens_that_spell_something_are_written(endless: LanguageModel):
    assert endless.tokenizer.vocab_size < VOCAB
    draw = torch.Generator().manual_seed(0)
    texts = endless.write(["", "so"], 97, Sampling(temperature=50), generator=draw)
    assert [len(text) for text in texts] == [97, 97]  # specials and unused ids would spell nothing


def test_the_same_seed_draws_the_same_text(model: Model):
    prompts = ["zq", "xx", "e"]
    drawn = {seed: model.generate(prompts, 31, temperature=3.0, seed=seed) for seed in (3, 5)}
    assert drawn[3] == model.generate(prompts, 31, temperature=3.0, seed=3)
    assert drawn[3] != drawn[5]
    torch.manual_seed(7)
    first = model.generate("zq", 31, temperature=3.0)
    torch.manual_seed(7)
    assert model.generate("zq", 31, temperature=3.0) == first


def test_a_text_ends_before_the_first_string_that_stops_it(model: Model, untrained: LanguageModel):
    assert model.generate("", temperature=0, stop=["ch", "much", "zz"]) == "so "
    assert model.generate(["", "so much f"], temperature=0, stop=["for"]) == ["so much ", "or that"]
    greedy, longest = Sampling(temperature=0), MAX_TEXT - 1
    whole = untrained.write(["a", "the"], longest, greedy)
    for stop in (whole[0][5:7], whole[1][-2:], "so"):
        expected = [text.split(stop)[0] for text in whole]
        assert untrained.write(["a", "the"], longest, greedy, [stop]) == expected


def test_a_text_may_stop_at_any_length(endless: LanguageModel):
    def written(stop: str) -> str:
        draw = torch.Generator().manual_seed(2)
        (text,) = endless.write(["so"], 3 * ROUND + 7, Sampling(temperature=50), [stop], draw)
        return text

    whole = written("never")
    assert len(whole) == 3 * ROUND + 7
    for place in (3, ROUND - 2, 2 * ROUND + 5):
        stop = whole[place : place + 5]
        assert written(stop) == whole.split(stop)[0]


def test_likelihoods_are_sums_over_tokens_and_multiply(model: Model):
    asked = model.language
    for text, after in ((LINE, ""), ("fgh", "so "), ("", "so "), (" é", "so")):
        found = model.log_likelihood(text, after)
        assert found == pytest.approx(log_prob(asked, text, after), rel=1e-4, abs=1e-5)
        tokens = model.log_likelihood(text, after, by_token=True)
        assert "".join(piece for piece, _ in tokens) == text
        assert math.fsum(value for _, value in tokens) == pytest.approx(found)
    parts = model.log_likelihood("so mu") + model.log_likelihood("zh for", after="so mu")
    assert parts == pytest.approx(model.log_likelihood("so muzh for"), rel=1e-4)


def test_a_list_gives_a_list_in_its_order(model: Model):
    texts = ["zebra", "a", LINE, "so much for nothing"]
    for method in (model.log_likelihood, model.perplexity):
        each = [method(text) for text in texts]
        for found, one in zip(method(texts), each, strict=True):
            assert found == pytest.approx(one, rel=1e-4)
    choices = model.log_likelihood(["that", "this"], after="so much for ")
    assert choices == pytest.approx(
        [model.log_likelihood(text, "so much for ") for text in ("that", "this")], rel=1e-4
    )
    assert choices[0] > choices[1]
    contexts = model.log_likelihood("that", after=["so much for ", "zebra"])
    assert contexts[0] > contexts[1]
    prompts = ["so", "so much", "", "so much for tha"]
    assert model.generate(prompts, temperature=0) == [
        model.generate(prompt, temperature=0) for prompt in prompts
    ]


def test_a_perplexity_is_of_tokens_and_bits_are_of_bytes(model: Model):
    found = model.perplexity("é so\n")
    nats = -log_prob(model.language, "é so\n")
    assert (found.tokens, found.num_bytes) == (5, 6)
    assert found.nats == pytest.approx(nats, rel=1e-4)
    assert found.perplexity == pytest.approx(math.exp(nats / 5), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 6, rel=1e-4)


def test_a_text_longer_than_the_network_reads_is_predicted_in_windows(model: Model):
    text = (f"{LINE} zebra\n" * 5)[: 2 * MAX_TEXT + 7]
    asked = model.language
    # Two windows of letters that follow each other, and one that reaches back.
    nats = -log_prob(asked, text[:MAX_TEXT])
    ids = asked.tokenizer.encode_whole(text)[0]
    for first, start in ((MAX_TEXT, MAX_TEXT - 1), (2 * MAX_TEXT, len(text) - 1 - MAX_TEXT)):
        for place in range(first, min(first + MAX_TEXT, len(text))):
            with torch.no_grad():
                hidden = asked.net(torch.tensor([ids[start:place]])).hidden[0, -1]
                nats -= asked.net.scores(hidden).log_softmax(dim=0)[ids[place]].item()
    assert model.perplexity(text).nats == pytest.approx(nats, rel=1e-4)
    fits = text[-(MAX_TEXT - 3) :]  # with all but the last letter of "much"
    found = model.log_likelihood("much", after=text)
    assert found == pytest.approx(model.log_likelihood("much", after=fits), rel=1e-4)
    assert found != pytest.approx(model.log_likelihood("much", after=fits[1:]), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "given", "why"),
    [
        ("generate", {"prompt": 7}, "A prompt is a str or a list of them, not int"),
        ("generate", {"prompt": []}, "There is no prompt"),
        ("generate", {"prompt": "a", "max_tokens": 0}, "max_tokens is 1 or more, got 0"),
        ("generate", {"prompt": "a", "max_tokens": 2.5}, "max_tokens is a whole number, got 2.5"),
        ("generate", {"prompt": "a", "max_tokens": None}, "max_tokens is a whole number, got None"),
        ("generate", {"prompt": "a", "temperature": "hot"}, "temperature is a number, got 'hot'"),
        ("generate", {"prompt": "a", "temperature": -1}, "temperature is 0 or more, got -1"),
        ("generate", {"prompt": "a", "top_k": 0}, "top_k is a number of tokens, 1 or more, got 0"),
        ("generate", {"prompt": "a", "top_k": True}, "top_k is a whole number, got True"),
        ("generate", {"prompt": "a", "top_p": 1.5}, r"top_p is a probability in \(0, 1\], got 1.5"),
        ("generate", {"prompt": "a", "seed": "x"}, "seed is a whole number, got 'x'"),
        ("generate", {"prompt": "a", "stop": "x"}, "stop is a list of strings .*, got 'x'"),
        ("generate", {"prompt": "a", "stop": [""]}, "strings that are not empty"),
        ("log_likelihood", {"text": None}, "A text is a str or a list of them, not NoneType"),
        ("log_likelihood", {"text": "a", "after": 3}, "A text before it is a str .*, not int"),
        ("log_likelihood", {"text": ["a"] * 2, "after": ["b"] * 3}, "2 of text and 3 of after"),
        ("perplexity", {"text": ""}, "The text '' has no tokens, so it has no perplexity"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(model: Model, method, given, why):
    with pytest.raises(ValueError, match=why):
        getattr(model, method)(**given)


def test_a_language_model_refuses_what_others_can_do(model: Model):
    more = {"score": 2, "probabilities": 2, "answer": 2, "is_true": 3}
    for method in chain.from_iterable(METHODS.values()):
        if method not in METHODS[LanguageModeling]:
            with pytest.raises(ValueError, match=f"perplexity but not {method}: load a"):
                getattr(model, method)(*["a"] * more.get(method, 1))


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(untrained: LanguageModel):
    with pytest.raises(ValueError, match=r"of here has 34 tokens, more than .*vocab_size=33"):
        LanguageModel(small_decoder(vocab_size=33), untrained.tokenizer, "here")
