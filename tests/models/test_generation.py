"""Captions: what a token may depend on, and that searching with a cache finds what is best."""

import itertools
from functools import partial

import pytest
import torch

from mhmoe_mm.models.caption_reader import Reader, caption_visible, check_causal
from mhmoe_mm.models.generation import Decoding, generate
from mhmoe_mm.models.heads import MaskedLanguageHead
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.moe import ExpertChoiceRouter, GeluExperts, MHMoE, SparseMoE, TopKRouter
from mhmoe_mm.moe.capacity import Capacity
from tests.models.nets import BATCH, DIM, LAYOUTS, PATCHES, dense_ffn, small_inputs, small_net

SPLIT = PATCHES + 1
SMALL_VOCAB, BOS, EOS, MASK = 5, 0, 2, 4


def sparse(router=TopKRouter, heads=2):
    experts = partial(GeluExperts, hidden=13)
    if heads == 1:
        return partial(SparseMoE, num_experts=5, router=router, experts=experts)
    return partial(MHMoE, num_heads=heads, num_experts=5, router=router, experts=experts)


def captioner(layout=SharedLayout, ffn=None, vocab=SMALL_VOCAB, sharp=40.0):
    """A network and a head whose predictions differ from token to token."""
    net = small_net(layout(dense=dense_ffn, sparse=ffn), vocab_size=vocab)
    head = MaskedLanguageHead(DIM, vocab).eval()
    with torch.no_grad():
        head.out.weight.mul_(sharp)
    return net, head


def uncached(net, head, image, captions):
    """Scores of the token after each caption, by a whole forward of caption and mask token."""
    text = torch.tensor([[*caption, MASK] for caption in captions])
    visible = caption_visible(SPLIT, text.shape[1])
    return head(net(image, text, visible=visible).hidden[:, -1])


@pytest.mark.parametrize(("image", "text"), [(1, 1), (3, 5), (7, 2)])
def test_images_see_images_and_texts_see_both_but_not_ahead(image, text):
    visible = caption_visible(image, text)
    for query, key in itertools.product(range(image + text), repeat=2):
        expected = key < image if query < image or key < image else key <= query
        assert visible[query, key] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ffn", [None, sparse(), sparse(heads=1)])
@torch.no_grad()
def test_a_caption_sees_no_later_token_and_an_image_no_caption(layout, ffn):
    net, _ = captioner(layout, ffn, vocab=53)
    image, text, _ = small_inputs()
    visible = caption_visible(SPLIT, text.shape[1])
    before = net(image, text, visible=visible).hidden
    changed = torch.cat([text[:, :4], (text[:, 4:] + 1) % 53], dim=1)
    after = net(image, changed, visible=visible).hidden
    torch.testing.assert_close(before[:, : SPLIT + 4], after[:, : SPLIT + 4])
    assert (before[:, SPLIT + 4 :] - after[:, SPLIT + 4 :]).abs().amax(dim=2).min() > 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ffn", [None, sparse(), sparse(heads=1)])
@torch.no_grad()
def test_reading_on_with_a_cache_predicts_what_reading_all_again_does(layout, ffn):
    net, head = captioner(layout, ffn)
    image, _, _ = small_inputs()
    reader = Reader(net, head, MASK)
    written = torch.randint(SMALL_VOCAB, (BATCH, 7))
    for length in range(1, 8):
        token = written[:, length - 1]
        score = reader.start(image, token) if length == 1 else reader.step(token)
        again = uncached(net, head, image, written[:, :length].tolist())
        torch.testing.assert_close(score, again, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_reordered_reader_goes_on_with_the_captions_it_was_given():
    net, head = captioner(ffn=sparse())
    image, _, _ = small_inputs()
    reader = Reader(net, head, MASK)
    reader.start(image, torch.tensor([0, 1, 3]))
    rows = torch.tensor([2, 0, 0, 1, 2])
    reader.reorder(rows)
    score = reader.step(torch.tensor([1, 2, 3, 4, 0]))
    captions = [[3, 1], [0, 2], [0, 3], [1, 4], [3, 0]]
    torch.testing.assert_close(
        score, uncached(net, head, image[rows], captions), rtol=1e-4, atol=1e-5
    )


def every_caption(net, head, image, longest, never=()):
    """All captions of one image with their log-probabilities, by whole forwards."""
    unfinished, found = [([], 0.0)], []
    for _ in range(longest):
        scores = uncached(
            net, head, image.expand(len(unfinished), -1, -1, -1), [[BOS, *t] for t, _ in unfinished]
        )
        scores[:, list(never)] = -torch.inf
        grown = [
            ([*tokens, token], total + log_prob)
            for (tokens, total), row in zip(
                unfinished, scores.log_softmax(dim=1).tolist(), strict=True
            )
            for token, log_prob in enumerate(row)
            if token not in never
        ]
        found += [caption for caption in grown if caption[0][-1] == EOS]
        unfinished = [caption for caption in grown if caption[0][-1] != EOS]
    return found + unfinished


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@torch.no_grad()
def test_enough_beams_find_the_best_of_all_captions(penalty):
    net, head = captioner(ffn=sparse())
    image, _, _ = small_inputs()
    decoding = Decoding(num_beams=53, length_penalty=penalty, max_tokens=4)
    found = generate(Reader(net, head, MASK), image, BOS, EOS, decoding, never=[MASK])
    for row, caption in enumerate(found):
        every = every_caption(net, head, image[row : row + 1], 3, never=[MASK])
        tokens, total = max(every, key=lambda c: c[1] / len(c[0]) ** penalty)
        assert caption.token == [token for token in tokens if token != EOS]
        assert caption.score == pytest.approx(total / len(tokens) ** penalty, rel=1e-4)


@pytest.mark.parametrize("beams", [1, 2, 3])
@torch.no_grad()
def test_a_captions_score_is_the_mean_log_probability_of_its_tokens(beams):
    net, head = captioner()
    image, _, _ = small_inputs()
    decoding = Decoding(num_beams=beams, length_penalty=1.0, max_tokens=6)
    for row, caption in enumerate(generate(Reader(net, head, MASK), image, BOS, EOS, decoding)):
        tokens = [BOS, *caption.token] + [EOS] * (len(caption.token) < 5)
        total = sum(
            uncached(net, head, image[row : row + 1], [tokens[:i]]).log_softmax(1)[0, tokens[i]]
            for i in range(1, len(tokens))
        )
        assert caption.score == pytest.approx(total.item() / (len(tokens) - 1), rel=1e-4)


@torch.no_grad()
def test_one_beam_takes_the_most_probable_token_until_the_end():
    net, head = captioner(sharp=5.0)
    with torch.no_grad():
        head.out.bias[EOS] = 0.2
    image, _, _ = small_inputs()
    found = generate(
        Reader(net, head, MASK), image, BOS, EOS, Decoding(1, max_tokens=9), never=[MASK]
    )
    for row, caption in enumerate(found):
        written = [BOS]
        while len(written) < 9:
            score = uncached(net, head, image[row : row + 1], [written])[0]
            score[MASK] = -torch.inf
            written.append(int(score.argmax()))
            if written[-1] == EOS:
                break
        assert caption.token == [token for token in written[1:] if token != EOS]


@torch.no_grad()
def test_a_caption_does_not_depend_on_the_images_beside_it():
    net, head = captioner(ffn=sparse())
    image, _, _ = small_inputs()
    reader, decoding = Reader(net, head, MASK), Decoding(3, max_tokens=7)
    together = generate(reader, image, BOS, EOS, decoding)
    alone = [generate(reader, row[None], BOS, EOS, decoding)[0] for row in image]
    assert [caption.token for caption in together] == [caption.token for caption in alone]


@pytest.mark.parametrize(
    ("router", "why"),
    [
        (ExpertChoiceRouter, "is not causal"),
        (partial(TopKRouter, top_k=1, capacity=Capacity()), "has a capacity"),
    ],
)
def test_routers_that_look_at_other_tokens_are_refused(router, why):
    net, head = captioner(ffn=sparse(router))
    with pytest.raises(ValueError, match=rf"blocks.1.ffn.shared.moe.router, a \w+Router, {why}"):
        Reader(net, head, MASK)
    check_causal(captioner(ffn=sparse())[0])


def test_captions_longer_than_the_network_reads_are_refused():
    net, head = captioner()
    with pytest.raises(ValueError, match="max_tokens=12 are longer than the network's max_text=11"):
        generate(Reader(net, head, MASK), small_inputs()[0], BOS, EOS, Decoding(1, max_tokens=12))
