"""The causal decoder: who sees whom, what is remembered, where tokens stand."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mhmoe_mm.models.attention import Past
from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.models.positions import LearnedPositions, RotaryPositions
from mhmoe_mm.moe import (
    Capacity,
    ExpertChoiceRouter,
    GeluExperts,
    Kinds,
    MHMoE,
    SparseMoE,
    SwiGLUExperts,
    TopKRouter,
)

VOCAB, DIM, LAYERS, HEADS, LONGEST = 31, 24, 3, 2, 17
MH = partial(MHMoE, num_heads=2, num_experts=5, experts=partial(SwiGLUExperts, hidden=7))
FIRST = {  # as in the first paper
    "dense": partial(GeluFFN, hidden=29),
    "positions": LearnedPositions,
    "norm": nn.LayerNorm,
    "attention": partial(CausalAttention, bias=True, sub_norm=True),
    "sparse": partial(
        SparseMoE, num_experts=5, experts=partial(GeluExperts, hidden=13, sub_norm=True)
    ),
}
SECOND = {"dense": partial(SwiGLUFFN, hidden=19), "sparse": MH}  # as in the second
BOTH = pytest.mark.parametrize("options", [FIRST, SECOND], ids=["first", "second"])


def net(seed: int = 0, **options) -> Decoder:
    torch.manual_seed(seed)
    made = Decoder(VOCAB, DIM, LAYERS, HEADS, LONGEST, **options).eval()
    for parameter in made.parameters():  # so large that what is wrong shows
        if parameter.ndim > 1:
            parameter.data.mul_(3)
    return made


def tokens(rows: int, seq: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, seq), generator=torch.Generator().manual_seed(seed))


@BOTH
def test_a_token_changes_itself_and_later_ones_but_none_before(options):
    made, token = net(**options), tokens(3, 13)
    other = token.clone()
    other[:, 7] = (token[:, 7] + 1) % VOCAB
    before, after = made(token).hidden, made(other).hidden
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert ((before - after).abs().amax(dim=2)[:, 7:] > 1e-4).all()


@BOTH
def test_documents_of_a_row_are_read_as_if_each_stood_alone(options):
    made, token = net(**options), tokens(2, 13)
    document = torch.tensor([[0] * 5 + [1] * 8, [4] * 2 + [5] * 1 + [9] * 10])
    together = made(token, document).hidden
    for row in range(2):
        alone = [made(token[row, own][None]).hidden[0] for own in _documents(document[row])]
        torch.testing.assert_close(together[row], torch.cat(alone), rtol=1e-4, atol=1e-5)


def _documents(document: torch.Tensor) -> list[torch.Tensor]:
    return [document == number for number in document.unique()]


@BOTH
@pytest.mark.parametrize("padded", ["in front", "behind"])
def test_padding_is_seen_by_nobody_and_goes_to_no_expert(options, padded):
    made, token = net(**options), tokens(2, 13)
    keep = torch.ones(2, 13, dtype=torch.bool)
    keep[1, :4] = False
    if padded == "behind":
        keep = keep.flip(1)
    filled = made(token, keep=keep)
    short = made(token[1, keep[1]][None])
    torch.testing.assert_close(filled.hidden[1, keep[1]], short.hidden[0], rtol=1e-4, atol=1e-5)
    assert filled.hidden.isfinite().all()
    full = made(token[:1])
    assert set(filled.loads) == {"layers.1.ffn"}
    for name, load in filled.loads.items():
        torch.testing.assert_close(load.count, full.loads[name].count + short.loads[name].count)


@BOTH
@pytest.mark.parametrize("cuts", [(1,) * 13, (5, 1, 7), (12, 1)])
def test_reading_on_gives_what_reading_at_once_gives(options, cuts):
    made, token = net(**options), tokens(2, 13)
    past = [Past() for _ in made.layers]
    parts = [made(part, past=past).hidden for part in token.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), made(token).hidden, rtol=1e-4, atol=1e-5)


@BOTH
@pytest.mark.parametrize("cuts", [(5, 1, 7), (6, 1, 1, 5)])
def test_padded_texts_are_read_on_as_each_is_alone(options, cuts):
    made, token = net(**options), tokens(3, 13)
    keep = torch.arange(13) >= torch.tensor([[0], [4], [3]])
    past, parts, start = [Past() for _ in made.layers], [], 0
    for part in token.split(cuts, dim=1):
        start += part.shape[1]
        parts.append(made(part, keep=keep[:, :start], past=past).hidden)
    found = torch.cat(parts, dim=1)
    for row, own in enumerate(keep):
        alone = made(token[row, own][None]).hidden[0]
        torch.testing.assert_close(found[row, own], alone, rtol=1e-4, atol=1e-5)


def test_sparse_layers_stand_where_they_are_asked_for():
    for every, there in ((1, [0, 1, 2]), (2, [1]), (3, [2])):
        loads = net(sparse=MH, sparse_every=every)(tokens(1, 5)).loads
        assert list(loads) == [f"layers.{number}.ffn" for number in there]
    assert net()(tokens(1, 5)).loads == {}


def test_loads_tell_languages_apart():
    made, token = net(sparse=MH), tokens(3, 5)
    kinds = Kinds(torch.tensor([0, 2, 2])[:, None].expand(3, 5), ("en", "de", "cs"))
    (load,) = made(token, kinds=kinds).loads.values()
    assert load.names == ("en", "de", "cs")
    assert load.token.tolist() == [10, 0, 20]  # two sub-tokens each


def test_rotary_positions_turn_pairs_by_angles_that_depend_on_the_distance_alone():
    rotary = RotaryPositions(dim=16, num_heads=2, max_text=LONGEST, theta=100.0)
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 2, 1, 8)

    def score(query_place: int, key_place: int) -> torch.Tensor:
        turns = (rotary.rotation(torch.tensor([[p]])) for p in (query_place, key_place))
        turned = [turn(x) for turn, x in zip(turns, (query, key), strict=True)]
        return (turned[0] * turned[1]).sum(dim=-1)

    torch.testing.assert_close(score(3, 1), score(13, 11))
    assert not torch.allclose(score(3, 1), score(3, 2))
    place = 7
    turned = rotary.rotation(torch.tensor([[place]]))(key)
    for pair in range(4):  # as complex numbers
        angle = place * 100.0 ** (-2 * pair / 8)
        one = torch.view_as_complex(key[..., 2 * pair : 2 * pair + 2].contiguous())
        want = torch.view_as_real(one * complex(math.cos(angle), math.sin(angle)))
        torch.testing.assert_close(turned[..., 2 * pair : 2 * pair + 2], want)


def test_a_dense_layer_of_the_second_paper_equals_its_formulas_written_out():
    made, token = net(dense=partial(SwiGLUFFN, hidden=19)), tokens(2, 5)
    x = made.token_embedding.weight[token]
    place = torch.arange(5)[None].expand(2, 5)
    for layer in made.layers:
        y = x / (x.square().mean(dim=2, keepdim=True) + 1e-5).sqrt() * layer.attention_norm.weight
        rotate = made.positions.rotation(place)
        parts = []
        for head in range(HEADS):
            own = slice(head * 12, head * 12 + 12)
            query, key, value = (
                y @ getattr(layer.attention, name).weight[own].T
                for name in ("query", "key", "value")
            )
            query, key = (rotate(part[:, None])[:, 0] for part in (query, key))
            score = query @ key.transpose(1, 2) / math.sqrt(12)
            score = score + torch.full((5, 5), -torch.inf).triu(1)
            parts.append(score.softmax(dim=2) @ value)
        x = x + torch.cat(parts, dim=2) @ layer.attention.out.weight.T
        y = x / (x.square().mean(dim=2, keepdim=True) + 1e-5).sqrt() * layer.ffn_norm.weight
        gate, up, down = (getattr(layer.ffn, name).weight for name in ("gate", "up", "down"))
        x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
    want = x / (x.square().mean(dim=2, keepdim=True) + 1e-5).sqrt() * made.norm.weight
    found = made(token).hidden
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.scores(found), found @ made.token_embedding.weight.T)


def test_what_all_layers_add_starts_as_large_as_what_one_adds():
    size = {}
    for layers in (2, 18):
        torch.manual_seed(0)
        made = Decoder(VOCAB, DIM, layers, HEADS, LONGEST)
        size[layers] = torch.stack([layer.ffn.down.weight.std() for layer in made.layers]).mean()
    assert (size[2] / size[18]).item() == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    "router",
    [ExpertChoiceRouter, partial(TopKRouter, top_k=2, capacity=Capacity())],
    ids=["expert choice", "capacity"],
)
def test_a_router_that_looks_ahead_is_refused_by_name(router):
    with pytest.raises(ValueError, match=r"cannot use layers\.1\.ffn\.moe\.router.*yet to come"):
        Decoder(VOCAB, DIM, LAYERS, HEADS, LONGEST, sparse=partial(MH, router=router))


def test_wrong_numbers_get_a_sentence():
    with pytest.raises(ValueError, match="at most 17 tokens, got 18"):
        net()(tokens(1, 18))
    past = [Past() for _ in range(LAYERS)]
    made = net()
    made(tokens(1, 11), past=past)
    with pytest.raises(ValueError, match="at most 17 tokens, got 18"):
        made(tokens(1, 7), past=past)
    with pytest.raises(ValueError, match="are one document"):
        made(tokens(1, 2), document=tokens(1, 2), past=past)
    with pytest.raises(ValueError, match=r"its shape is \(1, 13\), got \(1, 2\)"):
        made(tokens(1, 2), keep=torch.ones(1, 2, dtype=torch.bool), past=past)
    with pytest.raises(ValueError, match="sparse_every is 1"):
        Decoder(VOCAB, DIM, LAYERS, HEADS, LONGEST, sparse_every=0)
    with pytest.raises(ValueError, match="num_heads among the divisors"):
        Decoder(VOCAB, DIM, LAYERS, 5, LONGEST)
    with pytest.raises(ValueError, match="turn pairs of features"):
        Decoder(VOCAB, 6, LAYERS, 2, LONGEST)
