"""How likely texts are, against one token after another."""

import pytest
import torch

from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.likelihood import Encoded, encoded, likelihoods, windows
from tests.language import SEQ, VOCAB, small_decoder


@pytest.mark.parametrize("longest", [1, 2, 7, 13])
@pytest.mark.parametrize("known", [1, 5, 23])
def test_windows_predict_every_token_once_and_fit_the_network(known: int, longest: int):
    for total in range(known, known + 31):
        cut = windows(known, total, longest)
        predicted = [place for window in cut for place in range(window.first, window.end)]
        assert predicted == list(range(known, total))
        for window in cut:
            assert 0 <= window.start < window.first < window.end
            assert window.end - 1 - window.start <= longest


def by_hand(net, text: Encoded) -> list[float]:
    """Each token's log-probability, asked for by itself in the window that predicts it."""
    found = []
    for window in windows(text.known, len(text.token), net.max_text):
        for place in range(window.first, window.end):
            seen = torch.tensor([text.token[window.start : place]])
            log_prob = net.scores(net(seen).hidden[0, -1]).log_softmax(dim=0)
            found.append(log_prob[text.token[place]].item())
    return found


@torch.no_grad()
@pytest.mark.parametrize("at_a_time", [1, 3, 100])
def test_likelihoods_are_those_of_tokens_asked_for_one_by_one(at_a_time: int):
    torch.manual_seed(0)
    net = small_decoder().eval()
    draw = torch.Generator().manual_seed(1)
    lengths = ((1, 2), (3, 3), (2, SEQ), (1, SEQ + 1), (11, 41), (1, 30))
    texts = [
        Encoded(torch.randint(VOCAB, (total,), generator=draw).tolist(), known, [])
        for known, total in lengths
    ]
    done = []
    found = likelihoods(net, texts, fill=1, at_a_time=at_a_time, chunk=5, advance=done.append)
    assert sum(done) == len(texts)
    for one, text in zip(found, texts, strict=True):
        assert one.log_prob == pytest.approx(by_hand(net, text), rel=1e-4, abs=1e-5)
        assert len(one.likeliest) == len(text.token) - text.known
        assert one.total == pytest.approx(sum(one.log_prob))


def test_the_pieces_of_a_text_spell_it(tokenizer_path: str):
    tokenizer = Tokenizer(tokenizer_path)
    for after, text in (("", "a red ball"), ("a red", " ball on a table"), ("a r", "ed ball")):
        cut = encoded(tokenizer, text, after)
        assert "".join(cut.pieces) == text
        assert len(cut.pieces) == len(cut.token) - cut.known
        assert cut.token[0] == tokenizer.eos
