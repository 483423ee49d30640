"""What the encoder promises in every layout."""

import copy
from functools import partial

import jaxtyping
import pytest
import torch

from mhmoe_mm.models.beit3 import MultiwayInput
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import PaperLayout, ReleasedLayout, SharedLayout
from mhmoe_mm.moe import GeluExperts, MHMoE

from .nets import (
    BATCH,
    LAYERS,
    LAYOUTS,
    PATCHES,
    SEQ,
    VOCAB,
    CountingFFN,
    dense_ffn,
    merged,
    small_inputs,
    small_net,
)


@pytest.fixture(params=LAYOUTS)
def net(request):
    return small_net(request.param(dense=dense_ffn))


def close(x, y):
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_what_stands_at_padding_changes_no_real_tokens_output(net):
    image, text, pad = small_inputs()
    other = torch.where(pad, (text + 1) % VOCAB, text)
    keep = torch.cat([torch.ones(BATCH, PATCHES + 1, dtype=torch.bool), ~pad], dim=1)
    assert torch.equal(net(image, text, pad).hidden[keep], net(image, other, pad).hidden[keep])
    assert torch.equal(net(None, text, pad).hidden[~pad], net(None, other, pad).hidden[~pad])
    assert not torch.allclose(net(image, text).hidden[keep], net(image, other).hidden[keep])


@torch.no_grad()
def test_a_padded_text_is_encoded_as_the_shorter_text_is(net):
    image, text, _ = small_inputs()
    pad = torch.arange(SEQ).expand(BATCH, SEQ) >= 5
    close(net(image, text, pad).hidden[:, :-2], net(image, text[:, :5]).hidden)
    close(net(None, text, pad).hidden[:, :-2], net(None, text[:, :5]).hidden)


@torch.no_grad()
def test_a_pair_whose_text_is_all_padding_is_encoded_as_the_image_alone_is():
    image, text, _ = small_inputs()
    for layout in (ReleasedLayout, SharedLayout):
        net = small_net(layout(dense=dense_ffn))
        pair = net(image, text, torch.ones(BATCH, SEQ, dtype=torch.bool))
        close(pair.hidden[:, : pair.split], net(image, None).hidden)
        assert pair.hidden.isfinite().all()


@torch.no_grad()
def test_forwards_of_images_texts_and_pairs_do_not_depend_on_their_order(net):
    image, text, pad = small_inputs()
    calls = [(image, None, None), (None, text, pad), (image, text, pad)]
    first = [copy.deepcopy(net)(*call).hidden for call in calls]
    for order in [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)]:
        for i in order:
            assert torch.equal(net(*calls[i]).hidden, first[i])


@torch.no_grad()
def test_pixels_of_masked_patches_do_not_matter_and_others_do(net):
    image, text, pad = small_inputs()
    masked = torch.zeros(BATCH, PATCHES, dtype=torch.bool)
    masked[:, [1, 5]] = True  # patch 1 is rows 0-3, columns 4-7; patch 5 rows 4-7, columns 8-11
    other = image.clone()
    other[:, :, 0:4, 4:8] = float("nan")
    other[:, :, 4:8, 8:12] += 3
    hidden = net(image, text, pad, masked).hidden
    assert torch.equal(hidden, net(other, text, pad, masked).hidden)
    assert not torch.allclose(hidden, net(image, text, pad).hidden)
    other[:, :, 8, 0] += 3
    assert not torch.allclose(hidden, net(other, text, pad, masked).hidden)


@torch.no_grad()
def test_masked_patches_still_tell_where_they_are(net):
    image, _, _ = small_inputs()
    hidden = net(image, None, masked=torch.ones(BATCH, PATCHES, dtype=torch.bool)).hidden
    assert not torch.allclose(hidden[:, 1], hidden[:, 2])


def trained(net, *inputs) -> set[str]:
    """Every parameter that a forward of these inputs gives a gradient."""
    net.zero_grad(set_to_none=True)
    net(*inputs).hidden.square().sum().backward()
    return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}


def test_text_passes_no_image_branch_and_images_no_text_branch():
    image, text, pad = small_inputs()
    net = small_net(ReleasedLayout(dense=dense_ffn))
    assert not any("image" in name for name in trained(net, None, text, pad))
    assert not any("text" in name for name in trained(net, image, None))
    pair = trained(net, image, text, pad)
    assert any(".ffn.image." in name for name in pair)
    assert any(".ffn.text." in name for name in pair)


def test_in_a_pair_text_outputs_reach_the_image_branch_through_attention_alone():
    image, text, _ = small_inputs()
    net = small_net(ReleasedLayout(dense=dense_ffn))
    encoded = net(image, text)
    encoded.hidden[:, encoded.split :].square().sum().backward()
    last = net.blocks[LAYERS - 1]
    assert last.attention.value["image"].weight.grad.any()
    assert not last.attention.out["image"].weight.grad.any()
    assert not last.ffn["image"].up.weight.grad.any()
    assert last.ffn["text"].up.weight.grad.any()


def test_only_pairs_pass_the_fused_nets_and_only_in_the_top_layers():
    image, text, pad = small_inputs()
    net = small_net(PaperLayout(dense=dense_ffn, fused_layers=2))
    fused = {i for i, block in enumerate(net.blocks) if "fused" in block.ffn}
    assert fused == {LAYERS - 2, LAYERS - 1}
    for alone in [(image, None), (None, text, pad)]:
        assert not any("fused" in name for name in trained(net, *alone))
    pair = trained(net, image, text, pad)
    for layer in range(LAYERS):
        assert any(f"blocks.{layer}.ffn.fused." in name for name in pair) == (layer in fused)
        for branch in ("image", "text"):
            assert any(f"blocks.{layer}.ffn.{branch}." in name for name in pair) == (
                layer not in fused
            )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_second_layer_is_sparse_and_its_loads_are_found_under_its_path(layout):
    image, text, pad = small_inputs()
    net = small_net(layout(dense=dense_ffn, sparse=CountingFFN))
    loads = net(image, text, pad).loads
    assert {int(path.split(".")[1]) for path in loads} == {1, 3}
    for path in loads:
        assert isinstance(net.get_submodule(path), CountingFFN)


def counts(loads, layer):
    return {
        path.rsplit(".")[-1]: load.token.tolist()
        for path, load in loads.items()
        if f".{layer}." in path
    }


@torch.no_grad()
def test_every_branch_counts_the_real_tokens_of_its_kind():
    image, text, pad = small_inputs()
    images, texts = BATCH * (PATCHES + 1), (~pad).sum().item()
    released = small_net(ReleasedLayout(dense=dense_ffn, sparse=CountingFFN, sparse_every=1))
    shared = small_net(SharedLayout(dense=dense_ffn, sparse=CountingFFN, sparse_every=1))
    paper = small_net(PaperLayout(dense=dense_ffn, sparse=CountingFFN, sparse_every=1))
    apart = {"image": [images, 0], "text": [0, texts]}
    assert counts(released(image, text, pad).loads, 0) == apart
    assert counts(released(image, None).loads, 4) == {"image": [images, 0]}
    assert counts(released(None, text, pad).loads, 4) == {"text": [0, texts]}
    assert counts(shared(image, text, pad).loads, 3) == {"shared": [images, texts]}
    assert counts(paper(image, text, pad).loads, 1) == apart
    assert counts(paper(image, text, pad).loads, 2) == {"fused": [images, texts]}
    assert counts(paper(None, text, pad).loads, 2) == {"text": [0, texts]}
    assert counts(shared(image, text).loads, 0) == {"shared": [images, BATCH * SEQ]}


def three_inputs() -> list[MultiwayInput]:
    """Images, texts and pairs, of other rows and other lengths."""
    image, text, pad = small_inputs()
    masked = torch.arange(PATCHES).expand(BATCH, PATCHES) % 3 == 0
    return [
        MultiwayInput(image[:2], masked=masked[:2]),
        MultiwayInput(text=text[:, :5], pad=pad[:, :5]),
        MultiwayInput(image.flip(3), text, pad, masked),
    ]


def real_tokens(read: MultiwayInput, hidden):
    if read.pad is None:
        return hidden
    keep = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
    keep[:, hidden.shape[1] - read.pad.shape[1] :] = ~read.pad
    return hidden[keep]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_pass_over_several_inputs_is_as_one_after_the_other(layout):
    experts = partial(GeluExperts, hidden=17)
    sparse = partial(MHMoE, num_heads=2, num_experts=3, experts=experts)
    net = small_net(layout(dense=dense_ffn, sparse=sparse))
    found = []
    for run in (lambda every: [net(*one) for one in every], lambda every: net.together(*every)):
        net.zero_grad()
        outcome = run(three_inputs())
        real = [
            real_tokens(one, each.hidden) for one, each in zip(three_inputs(), outcome, strict=True)
        ]
        sum(x.pow(2).mean() for x in real).backward()
        grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        found.append((real, merged(each.loads for each in outcome), grads))
    (apart, apart_loads, apart_grads), (joint, joint_loads, joint_grads) = found
    close(joint, apart)
    assert joint_loads.keys() == apart_loads.keys()
    for name, load in joint_loads.items():
        close(load[:-1], apart_loads[name][:-1])
    close(joint_grads, apart_grads)


def test_drop_path_grows_from_nothing_to_its_full_rate():
    net = small_net(SharedLayout(dense=dense_ffn), drop_path=0.2)
    rates = torch.tensor([block.drop_path.drop_prob for block in net.blocks])
    torch.testing.assert_close(rates, torch.linspace(0, 0.2, LAYERS))
    single = small_net(SharedLayout(dense=dense_ffn), num_layers=1, drop_path=0.2)
    assert single.blocks[0].drop_path.drop_prob == 0


def test_without_sub_norms_none_are_built():
    layout = SharedLayout(dense=lambda dim: GeluFFN(dim, sub_norm=False), sub_norm=False)
    names = [name for name, _ in small_net(layout).named_parameters()]
    assert not any("sub_norm" in name for name in names)
    assert any("sub_norm" in name for name, _ in small_net(SharedLayout()).named_parameters())


def test_a_new_network_starts_small_and_leaves_sparse_layers_their_own_start():
    class Constant(CountingFFN):
        def __init__(self, dim):
            super().__init__(dim)
            torch.nn.init.constant_(self.net.up.weight, 7.0)

    net = small_net(ReleasedLayout(sparse=Constant), vocab_size=211, dim=64)
    assert all(net.get_submodule(f"blocks.{i}.ffn.text").net.up.weight.eq(7).all() for i in (1, 3))
    for name, p in net.named_parameters():
        if ".net.up.weight" in name:
            continue
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert p.eq(1).all(), name
        else:
            assert 0 < p.abs().max() <= 0.04, name
            if p.numel() > 500:
                assert 0.016 < p.std() < 0.019, name  # 0.88 of 0.02: what the cut leaves


@pytest.fixture
def no_shape_checks():
    torch.compiler.reset()
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.compile
@pytest.mark.parametrize(
    "layout",
    [ReleasedLayout(dense_ffn), PaperLayout(dense_ffn, fused_layers=1), SharedLayout(dense_ffn)],
)
def test_the_forward_compiles_without_a_graph_break(layout, no_shape_checks):
    image, text, pad = small_inputs()
    masked = torch.arange(PATCHES).expand(BATCH, PATCHES) % 3 == 0
    net = small_net(layout, num_layers=2)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    together = torch.compile(net.together, fullgraph=True, backend="eager")(*three_inputs())
    for joint, read in zip(together, three_inputs(), strict=True):
        close(joint.hidden, net(*read).hidden)
    for call in [(image, text, pad, masked), (image, None), (None, text, pad), (None, text)]:
        close(compiled(*call).hidden, net(*call).hidden)
