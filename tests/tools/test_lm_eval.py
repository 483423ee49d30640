"""What the harness is told equals what it would find by its own rules, one token after another."""

import math
from collections.abc import Sequence

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from mhmoe_mm.inputs.tokenization import SPECIALS, Tokenizer
from mhmoe_mm.language_model import LanguageModel
from mhmoe_mm.models.sampling import Sampling
from tests.datamodules.text_files import letter_tokenizer
from tests.language import MAX_TEXT, VOCAB, small_decoder

adapter = pytest.importorskip("tools.lm_eval.adapter")
api = pytest.importorskip("lm_eval.api.model")
utils = pytest.importorskip("lm_eval.utils")
Instance = pytest.importorskip("lm_eval.api.instance").Instance

TALE = "the red hen and the red cat met a dog that had bad eggs and a hat; so be it, the hen said"


class ByTheRules(api.TemplateLM):
    """The harness's own cuts, each token asked for by itself."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        opening = [] if add_special_tokens is False else [self.eot_token_id]
        return opening + self.model.tokenizer.encode_whole(string)[0]

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False):
        longest, net, found = self.model.net.max_text, self.model.net, []
        for _, context, text in requests:
            token = (context + text)[-(longest + 1) :]
            total, greedy = 0.0, True
            for place in range(len(token) - len(text), len(token)):
                hidden = net(torch.tensor([token[:place]])).hidden[0, -1]
                log_prob = net.scores(hidden).log_softmax(dim=0)
                total += log_prob[token[place]].item()
                greedy &= log_prob.argmax().item() == token[place]
            found.append((total, greedy))
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        totals = []
        for request in requests:
            token = self.tok_encode(*request.args, add_special_tokens=False)
            windows = utils.get_rolling_token_windows(
                token, self.prefix_token_id, self.model.net.max_text, context_len=1
            )
            pairs = [("", *utils.make_disjoint_window(window)) for window in windows]
            totals.append(sum(total for total, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def byte_pairs(path) -> Tokenizer:
    """A tokenizer whose tokens are words with the blank before them, or parts of such."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(SPECIALS), initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([TALE] * 3, trainer)
    tokenizer.save(str(path))
    return Tokenizer(path)


@pytest.fixture(scope="module", params=["letters", "byte pairs"])
def model(request, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """An untrained model to which some tokens are likelier than others."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    letters = request.param == "letters"
    tokenizer = Tokenizer(letter_tokenizer(path)) if letters else byte_pairs(path)
    vocabulary = VOCAB if letters else tokenizer.vocab_size
    net = small_decoder(vocabulary, max_text=MAX_TEXT).eval()
    with torch.no_grad():
        net.token_embedding.weight.mul_(20)
    return LanguageModel(net, tokenizer, "here", at_a_time=3)


def asked(kind: str, arguments: Sequence[tuple]) -> list:
    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=0, metadata=("tales", 0, 1))
        for given in arguments
    ]


def test_log_likelihoods_are_those_of_the_harness_s_own_cuts(model: LanguageModel):
    requests = asked(
        "loglikelihood",
        [
            ("the red hen", " and the red cat"),
            ("the red hen ", "and"),  # the blank is of the text
            ("the red hen \n ", " and"),
            ("", "the red"),  # after `</s>` alone
            ("a", " dog"),
            (TALE, " and the dog"),  # more than the network reads: cut at its left
            (TALE[: MAX_TEXT - 4], " so"),
        ],
    )
    found = adapter.HarnessModel(model, "here").loglikelihood(requests)
    expected = ByTheRules(model).loglikelihood(requests, disable_tqdm=True)
    for (total, greedy), (right_total, right_greedy) in zip(found, expected, strict=True):
        assert total == pytest.approx(right_total, rel=1e-4, abs=1e-4)
        assert greedy is right_greedy


def test_a_token_across_the_end_of_a_context_is_the_text_s(model: LanguageModel):
    pair, whole = asked("loglikelihood", [("so be i", "t"), ("so be", " it")])
    joined = len(model.tokenizer.encode_whole(" it")[0]) == 1
    found = adapter.HarnessModel(model, "here").loglikelihood([pair, whole])
    assert (found[0] == pytest.approx(found[1])) is joined
    assert joined == (model.tokenizer.vocab_size > 256)


@torch.no_grad()
def test_a_text_of_likeliest_tokens_is_told_from_others(model: LanguageModel):
    (text,) = model.write(["the"], 5, Sampling(temperature=0))
    token = [model.tokenizer.eos, *model.tokenizer.encode_whole("the")[0]]
    scores = model.net.scores(model.net(torch.tensor([token])).hidden[0, -1])
    best = model.tokenizer.decode([max(model.tokenizer.ordinary, key=scores.tolist().__getitem__)])
    harness = adapter.HarnessModel(model, "here")
    requests = asked("loglikelihood", [("the", text), ("the", best + "q"), ("the", "q" + text)])
    expected = ByTheRules(model).loglikelihood(requests, disable_tqdm=True)
    assert [greedy for _, greedy in harness.loglikelihood(requests)] == [g for _, g in expected]


def test_rolling_windows_are_those_of_the_harness(model: LanguageModel):
    texts = [TALE, TALE[:MAX_TEXT], TALE[: MAX_TEXT + 1], "a", TALE * 3, ""]
    requests = asked("loglikelihood_rolling", [(text,) for text in texts])
    found = adapter.HarnessModel(model, "here").loglikelihood_rolling(requests)
    expected = ByTheRules(model).loglikelihood_rolling(requests)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found[-1] == 0 > max(found[:-1])


def test_texts_are_written_as_each_request_wants(model: LanguageModel):
    greedy = Sampling(temperature=0)
    short, long = model.write(["the red", "a dog"], 7, greedy), "the red"
    stop = short[0][1:3]
    requests = asked(
        "generate_until",
        [
            ("the red", {"until": [], "max_gen_toks": 7}),
            ("a dog", {"until": [stop, ""], "max_gen_toks": 7, "do_sample": False}),
            (long, {"until": stop, "max_new_tokens": 7, "temperature": 0.0}),
            ("a dog", {"until": [], "max_gen_toks": 7, "num_beams": 1}),
            ("a dog", {"do_sample": True, "temperature": 9.0, "top_k": 1, "max_gen_toks": 7}),
            ("a dog", {"do_sample": True, "top_p": 1e-9, "top_k": 0, "max_gen_toks": 7}),
        ],
    )
    found = adapter.HarnessModel(model, "here").generate_until(requests)
    first, second = short
    cut = [text.split(stop)[0] for text in short]
    assert found == [first, cut[1], cut[0], second, second, second]
    assert len(cut[0]) < len(first)


def test_the_same_seed_draws_the_same_text_for_the_harness(model: LanguageModel):
    hot = {"do_sample": True, "temperature": 20.0, "max_gen_toks": 11}
    requests = asked("generate_until", [("the", hot), ("the", hot)])
    drawn = []
    for seed in (3, 3, 5):
        torch.manual_seed(seed)
        drawn.append(adapter.HarnessModel(model, "here").generate_until(requests))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]  # repeated requests are drawn anew


def test_a_context_leaves_room_for_what_is_written(model: LanguageModel):
    read: list[list[int]] = []
    hook = model.net.register_forward_pre_hook(lambda _, given: read.extend(given[0].tolist()))
    written = adapter.HarnessModel(model, "here").generate_until
    token = model.tokenizer.encode_whole(TALE)[0]
    try:
        for new, kept in ((5, MAX_TEXT - 5), (MAX_TEXT - 1, 1), (MAX_TEXT, MAX_TEXT)):
            read.clear()
            written(asked("generate_until", [(TALE, {"until": [], "max_gen_toks": new})]))
            assert read[0] == token[-kept:]
    finally:
        hook.remove()
    longer = {"until": [], "max_gen_toks": 2 * MAX_TEXT}
    (text,) = model.write([TALE], 2 * MAX_TEXT, Sampling(temperature=0))
    assert written(asked("generate_until", [(TALE, longer)])) == [text]


def test_what_a_task_cannot_ask_for_is_refused_in_a_sentence(model: LanguageModel):
    harness = adapter.HarnessModel(model, "here")
    beams = {"until": [], "num_beams": 10, "min_p": 0.1}
    with pytest.raises(ValueError, match=r"num_beams=10, min_p=0.1, which is not done here"):
        harness.generate_until(asked("generate_until", [("a", beams)]))
    with pytest.raises(ValueError, match="tales asks how likely '' is, which has no tokens"):
        harness.loglikelihood(asked("loglikelihood", [("a", "")]))


def test_tokens_that_the_tokenizer_lacks_are_counted(model: LanguageModel):
    harness = adapter.HarnessModel(model, "here")
    harness.loglikelihood(asked("loglikelihood", [("a4", "ß"), ("4", "a")]))
    harness.loglikelihood_rolling(asked("loglikelihood_rolling", [("4a",)]))
    harness.generate_until(asked("generate_until", [("4", {"max_gen_toks": 3})]))
    bytes_are_tokens = model.tokenizer.vocab_size > 256
    assert harness.unknown == (0 if bytes_are_tokens else 5)
    assert harness.get_model_info()["unknown_tokens"] == harness.unknown < harness.tokens
    assert math.isfinite(harness.get_model_info()["model_num_parameters"])
