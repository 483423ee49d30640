"""What is recorded is what each sub-token of each token was really given."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from einops import rearrange

from mhmoe_mm.callbacks.routing_record import NOWHERE, RoutingRecorder, dense
from mhmoe_mm.callbacks.routing_rows import TEXT, row_of
from mhmoe_mm.callbacks.routing_tokens import Samples, chunk_of
from mhmoe_mm.models.attention import Past
from mhmoe_mm.models.beit3 import KINDS, BEiT3, MultiwayInput
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import PaperLayout, ReleasedLayout, SharedLayout
from mhmoe_mm.moe import Capacity, GeluExperts, MHMoE, SparseMoE, TopKRouter
from mhmoe_mm.moe.balanced_routers import ExpertChoiceRouter
from mhmoe_mm.moe.routing import Plan
from mhmoe_mm.moe.sparse_layers import described
from tests.language import rows_of_text, small_decoder
from tests.models.nets import merged

DIM, EXPERTS, PATCHES, VOCAB = 21, 5, 4, 31
EXPERT = partial(GeluExperts, hidden=11)


def net_of(layout, router=TopKRouter, heads=3) -> BEiT3:
    sparse = partial(SparseMoE, num_experts=EXPERTS, router=router, experts=EXPERT)
    if heads > 1:
        sparse = partial(MHMoE, num_heads=heads, num_experts=EXPERTS, router=router, experts=EXPERT)
    torch.manual_seed(0)
    made = layout(partial(GeluFFN, hidden=13), sparse, 1)
    return BEiT3(made, 16, 8, VOCAB, DIM, 3, 3, 11).eval()


def inputs(rows=2, seq=7):
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(rows, 3, 16, 16, generator=draw)
    text = torch.randint(5, VOCAB, (rows, seq), generator=draw)
    pad = torch.arange(seq) >= torch.tensor([[seq], [4]])[:rows]
    return image, text, pad


@torch.no_grad()
def recorded(net, *args, **kwargs):
    recorder = RoutingRecorder(net)
    with recorder.recording():
        output = net(*args, **kwargs)
    (forward,) = recorder.take()
    return forward, output


@pytest.mark.parametrize("layout", [SharedLayout, ReleasedLayout, PaperLayout])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("what", ["image", "text", "pair"])
def test_the_counts_of_every_kind_are_those_of_the_loads(layout, heads, what):
    net = net_of(layout, heads=heads)
    image, text, pad = inputs()
    if what == "image":
        text = pad = None
    if what == "text":
        image = None
    forward, output = recorded(net, image, text, pad)
    assert list(forward.layers) == list(output.loads)
    modality = torch.arange(forward.real.shape[1]).expand(forward.real.shape) >= forward.split
    of_token = modality.numpy()[forward.real]
    for name, load in output.loads.items():
        routing = forward.layers[name]
        for kind in range(len(KINDS)):
            own = routing.expert[of_token[routing.rows] == kind]
            assert own.shape[1:] == (heads, 2)
            found = Counter(own[own != NOWHERE].tolist())
            expected = {e: int(n) for e, n in enumerate(load.count[kind].tolist()) if n}
            assert found == expected


@torch.no_grad()
def test_every_head_of_every_token_has_its_own_experts_in_order():
    net = net_of(ReleasedLayout)
    image, text, pad = inputs()
    seen = {}
    for name, layer in net.named_modules():
        if isinstance(layer, MHMoE):
            layer.register_forward_pre_hook(
                lambda m, args, name=name: seen.__setitem__(name, args[0])
            )
    forward, _ = recorded(net, image, text, pad)
    tokens = [(row, place) for row in range(2) for place in range(12) if forward.real[row, place]]
    assert len(tokens) == 2 * 5 + 7 + 4
    for name, routing in forward.layers.items():
        layer = net.get_submodule(name)
        assert isinstance(layer, MHMoE)
        start = forward.split if name.endswith("text") else 0
        for number, expert, weight in zip(*routing, strict=True):
            row, place = tokens[number]
            cut = rearrange(layer.head_proj(seen[name][row, place - start]), "(h w) -> h w", h=3)
            prob, best = layer.router.scorer(cut).softmax(dim=1).topk(2, dim=1)
            assert expert.tolist() == best.tolist()
            assert torch.allclose(torch.from_numpy(weight).float(), prob, atol=1e-3)


@torch.no_grad()
def test_what_a_full_expert_refuses_goes_nowhere():
    router = partial(TopKRouter, capacity=Capacity(0.5, 0.5))
    net = net_of(SharedLayout, router)
    forward, output = recorded(net, *inputs())
    dropped = sum(int(load.dropped.sum()) for load in output.loads.values())
    refused = sum(int((one.expert == NOWHERE).sum()) for one in forward.layers.values())
    assert dropped == refused > 0


@torch.no_grad()
def test_experts_that_choose_are_counted_alike():
    net = net_of(SharedLayout, ExpertChoiceRouter)
    forward, output = recorded(net, *inputs())
    for name, load in output.loads.items():
        chosen = forward.layers[name].expert
        found = Counter(chosen[chosen != NOWHERE].tolist())
        assert found == {e: int(n) for e, n in enumerate(load.count.sum(dim=0).tolist()) if n}
        for sub in chosen.reshape(-1, chosen.shape[2]):
            real = sub[sub != NOWHERE]
            assert len(set(real.tolist())) == len(real)


@pytest.mark.parametrize("layout", [SharedLayout, ReleasedLayout, PaperLayout])
@torch.no_grad()
def test_inputs_that_are_read_together_are_recorded_as_if_apart(layout):
    net = net_of(layout)
    image, text, pad = inputs()
    every = [MultiwayInput(image), MultiwayInput(None, text, pad), MultiwayInput(image, text, pad)]
    recorder, other = RoutingRecorder(net), RoutingRecorder(net)
    with recorder.recording():
        apart = [net(*one) for one in every]
        expected = recorder.take()
        with other.recording():
            net.together(*every)
        recorder.take()
        joint = net.together(*every)
        found = recorder.take()
    net.together(*every)
    assert not recorder.take()
    assert len(other.take()) == 3
    assert len(found) == len(expected) == 3
    for one, alone in zip(found, expected, strict=True):
        assert one.split == alone.split
        assert (one.real == alone.real).all()
        assert one.layers.keys() == alone.layers.keys()
        for name, routing in one.layers.items():
            for array, wanted in zip(routing, alone.layers[name], strict=True):
                np.testing.assert_allclose(array, wanted, atol=1e-3)
    total = merged(each.loads for each in apart)
    loads = [(name, load) for one in found for name, load in one.loads.items()]
    assert {name for name, _ in loads} == total.keys()
    assert len(loads) == len(total)
    for name, load in loads:
        assert torch.equal(load.count, joint[0].loads[name].count)
        assert torch.equal(load.count, total[name].count)


def test_a_list_of_assignments_becomes_a_table():
    plan = Plan(
        torch.tensor([2, 0, 2, 1, 2]), torch.tensor([4, 1, 0, 5, 3]), torch.rand(5), per_token=0
    )
    expert, weight = dense(plan, 4, 5)
    assert expert.tolist() == [[1, -1, -1], [-1, -1, -1], [4, 0, 3], [-1, -1, -1]]
    assert weight[2].tolist() == pytest.approx(plan.weight[[0, 2, 4]].tolist(), abs=1e-3)


@torch.no_grad()
def test_a_decoder_is_recorded_by_layer_without_the_rows_that_only_fill_up():
    net = small_decoder().eval()
    batch = rows_of_text(3)
    keep = torch.tensor([True, False, True])[:, None].expand_as(batch.token)
    forward, output = recorded(net, batch.token, keep=keep)
    assert list(forward.layers) == list(output.loads) == ["layers.1.ffn"]
    assert forward.real.sum(axis=1).tolist() == [13, 0, 13]
    assert len(forward.layers["layers.1.ffn"].rows) == 26
    (layer,) = described(net)
    assert layer[:6] == ("layers.1.ffn", 1, "", "MHMoE", 5, 2)


@torch.no_grad()
def test_a_text_that_is_read_on_is_left_out():
    net = net_of(SharedLayout)
    past = [Past() for _ in net.blocks]
    recorder = RoutingRecorder(net)
    image, text, _ = inputs()
    with recorder.recording():
        net(image, text, past=past)
        net.read_on(text[:, :2], 7, past)
        net(image, None)
    assert [forward.text is None for forward in recorder.take()] == [True]


@torch.no_grad()
def test_compiled_blocks_run_uncompiled_while_recorded_and_compiled_again_after():
    net = net_of(SharedLayout)
    calls = []
    block = net.blocks[1]

    def compiled(*args, **kwargs):
        calls.append(1)
        return block._call_impl(*args, **kwargs)

    block._compiled_call_impl = compiled
    forward, _ = recorded(net, *inputs())
    assert len(forward.layers) == 3
    assert calls == []
    net(*inputs())
    assert calls == [1]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("layout", [SharedLayout, ReleasedLayout, PaperLayout])
def test_a_row_of_a_batch_is_what_it_is_alone_and_unpadded(layout):
    net = net_of(layout)
    image, text, pad = inputs()
    together, _ = recorded(net, image, text, pad)
    for row in range(2):
        own = text[row : row + 1, ~pad[row]]
        alone, _ = recorded(net, image[row : row + 1], own)
        found = row_of(chunk_of(together, Samples(*[["", ""]] * 4), None, None), row)
        assert found.tokens.vocabulary_id[found.part(TEXT)].tolist() == own[0].tolist()
        assert list(found.passed) == list(alone.layers)
        for name, routing in alone.layers.items():
            assert found.passed[name].tolist() == routing.rows.tolist()
            assert found.expert[name].tolist() == routing.expert.tolist()
            assert routing.weight is not None
            for start, number in ((1, 4), (5, own.shape[1]), (4, 2)):
                places = np.arange(start, start + number)
                some, weights = found.experts_of(places, name), found.weights_of(places, name)
                place = {token: i for i, token in enumerate(routing.rows.tolist())}
                wanted = [place.get(token) for token in places.tolist()]
                assert (some is None) == (weights is None) == (None in wanted)
                if some is not None and weights is not None:
                    assert some.tolist() == routing.expert[wanted].tolist()
                    assert weights.tolist() == pytest.approx(routing.weight[wanted], abs=1e-3)
        assert found.experts_of(np.arange(1), "no such layer") is None
