"""Tokens drawn from a decoder: from which distribution, and with what remembered."""

from functools import partial

import pytest
import torch

from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.sampling import Sampling, sample
from mhmoe_mm.moe import Capacity, SparseMoE, TopKRouter
from tests.language import SEQ, VOCAB, small_decoder

GREEDY = Sampling(temperature=0)


def net(max_text: int = SEQ) -> Decoder:
    torch.manual_seed(0)
    made = small_decoder(max_text=max_text).eval()
    for parameter in made.parameters():  # so large that texts do not repeat one token
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    return made


def prompts(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (n,), generator=draw).tolist() for n in lengths]


@torch.no_grad()
def test_greedy_texts_are_those_of_reading_everything_anew_for_each_token():
    made, given = net(29), prompts(3, 11, 3, 1)
    found = sample(made, given, 17, GREEDY)
    for prompt, written in zip(given, found, strict=True):
        text = list(prompt)
        for _ in range(17):
            text.append(int(made.scores(made(torch.tensor([text])).hidden[0, -1]).argmax()))
        assert written == text[len(prompt) :]
    assert len({tuple(written) for written in found}) > 1


def test_a_text_may_outgrow_the_network_and_a_prompt_too():
    made = net()
    (long,) = prompts(3 * SEQ)
    (written,) = sample(made, [long], 2 * SEQ, GREEDY)
    assert len(written) == 2 * SEQ
    (first,) = sample(made, [long[-SEQ:]], 1, GREEDY)
    assert written[0] == first[0]
    text = torch.tensor([(long + written)[-SEQ // 2 - 4 : -4]])
    assert made(text).hidden.isfinite().all()


def test_a_text_ends_before_its_end_token_whatever_others_do():
    made, given = net(29), prompts(3, 3, 3)
    plain = sample(made, given, 13, GREEDY)
    eos = plain[0][4]
    ended = sample(made, given, 13, GREEDY, eos=eos)
    for one, other in zip(plain, ended, strict=True):
        assert other == (one[: one.index(eos)] if eos in one else one)
    assert len(ended[0]) <= 4


def test_barred_tokens_are_never_written():
    made, given = net(29), prompts(3, 5)
    barred = {token for text in sample(made, given, 13, GREEDY) for token in text}
    assert barred
    found = sample(made, given, 13, GREEDY, never=barred)
    assert not barred & {token for text in found for token in text}


def test_the_same_generator_writes_the_same_text_and_another_does_not():
    made, given = net(29), prompts(5)
    texts = [
        sample(made, given, 17, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_frequencies_follow_the_softmax_at_the_temperature():
    scores = torch.randn(7, generator=torch.Generator().manual_seed(2)).expand(20011, 7)
    drawn = Sampling(temperature=0.7).draw(scores, torch.Generator().manual_seed(5))
    expected = (scores[0] / 0.7).softmax(dim=0) * 20011
    observed = drawn.bincount(minlength=7)
    chi_square = ((observed - expected).square() / expected).sum()
    assert chi_square < 22.5  # six degrees of freedom: exceeded once in a thousand


def test_the_k_likeliest_keep_their_ratios_and_one_is_greedy():
    scores = torch.randn(5, 11, generator=torch.Generator().manual_seed(2))
    found = Sampling(top_k=3).probabilities(scores)
    assert ((found > 0).sum(dim=1) == 3).all()
    for row, probability in zip(scores, found, strict=True):
        best = row.topk(3).indices
        torch.testing.assert_close(probability[best], row[best].softmax(dim=0))
    torch.testing.assert_close(
        Sampling(top_k=1).probabilities(scores), GREEDY.probabilities(scores)
    )


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 1.0])
def test_the_nucleus_is_the_smallest_set_with_that_probability(top_p: float):
    scores = 2 * torch.randn(13, 11, generator=torch.Generator().manual_seed(2))
    plain, found = scores.softmax(dim=1), Sampling(top_p=top_p).probabilities(scores)
    for probability, kept in zip(plain, found > 0, strict=True):
        inside = probability[kept]
        assert inside.sum() >= top_p - 1e-6
        assert inside.sum() - inside.min() < top_p  # none of them could be left out
        assert kept.all() or inside.min() >= probability[~kept].max()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(13))


def test_wrong_settings_get_a_sentence():
    for options in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            Sampling(**options)
    with pytest.raises(ValueError, match="one token or more"):
        sample(net(), [[1], []], 3)
    router = partial(TopKRouter, top_k=1, capacity=Capacity())
    full = Decoder(VOCAB, 28, 2, 2, SEQ, sparse=partial(SparseMoE, num_experts=5, router=router))
    with pytest.raises(ValueError, match=r"cannot be generated: layers\.1\.ffn\.router"):
        sample(full, [[1]], 3)
