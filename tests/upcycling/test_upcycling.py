"""Sparse networks from dense ones: what stays exactly, how near the rest comes, what is refused."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.models.multiway import PaperLayout, ReleasedLayout, SharedLayout
from mhmoe_mm.moe import (
    BiasBalancedRouter,
    CosineScorer,
    ExpertChoiceRouter,
    GeluExperts,
    GShardRouter,
    MHMoE,
    SparseMoE,
    SwiGLUExperts,
    SwitchRouter,
    TopKRouter,
)
from mhmoe_mm.upcycling.dense_ffn import dense_ffn
from mhmoe_mm.upcycling.filling import Start
from mhmoe_mm.upcycling.multi_head import fill_multi_head, share_out
from mhmoe_mm.upcycling.net import upcycle_net
from mhmoe_mm.upcycling.sparse import fill_sparse

DIM, HIDDEN, ROWS = 20, 28, 41
SUM_1 = partial(TopKRouter, top_k=2, renormalize=True)


def shaken(module: nn.Module, seed: int = 0) -> nn.Module:
    """With weights such as a training leaves: of some size, biases and norms too."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            spread = 0.1 if weight.ndim < 2 else weight.shape[-1] ** -0.5
            weight.add_(spread * torch.randn(weight.shape, generator=draw))
    return module.eval()


def tokens(dim: int = DIM, seed: int = 5) -> torch.Tensor:
    return torch.randn(1, ROWS, dim, generator=torch.Generator().manual_seed(seed))


def filled(dense: nn.Module, layer: SparseMoE, noise: float = 0.0) -> SparseMoE:
    net = dense_ffn(dense)
    assert net is not None
    fill_sparse(layer, net, tokens()[0], Start(noise), "the layer")
    return layer.eval()


def gelu(sub_norm: bool = False) -> GeluFFN:
    torch.manual_seed(1)
    return shaken(GeluFFN(DIM, HIDDEN, sub_norm))


@pytest.mark.parametrize(
    "router",
    [
        SUM_1,
        partial(SUM_1, scorer=CosineScorer),
        partial(TopKRouter, top_k=3),
        SwitchRouter,
        partial(GShardRouter, second="always"),
        BiasBalancedRouter,
    ],
)
@pytest.mark.parametrize("sub_norm", [False, True])
def test_copies_compute_what_the_dense_net_did_whatever_the_router(router, sub_norm):
    dense = gelu(sub_norm)
    experts = partial(GeluExperts, hidden=HIDDEN, sub_norm=sub_norm)
    layer = filled(dense, SparseMoE(DIM, 7, router, experts))
    y, load = layer(tokens())
    torch.testing.assert_close(y, dense(tokens())[0], atol=2e-5, rtol=1e-4)
    assert (load.count.sum(dim=0) > 0).sum() >= 4  # the router tells tokens apart


@pytest.mark.parametrize("slices", [2, 4])
def test_slices_compute_what_the_dense_net_did(slices):
    dense = gelu()
    router = partial(TopKRouter, top_k=4, renormalize=True)
    experts = partial(GeluExperts, hidden=HIDDEN // slices)
    layer = filled(dense, SparseMoE(DIM, 12, router, experts))
    y, load = layer(tokens())
    torch.testing.assert_close(y, dense(tokens())[0], atol=1e-5, rtol=1e-5)
    assert (load.count.sum(dim=0) > 0).all()
    halves = layer.experts.w_in[:slices].transpose(0, 1).flatten(1)
    torch.testing.assert_close(halves, dense.up.weight.T)


def test_slices_with_gates_that_do_not_add_up_to_one_come_to_three_digits():
    dense = gelu()
    layer = SparseMoE(DIM, 12, partial(TopKRouter, top_k=2), partial(GeluExperts, hidden=14))
    y, _ = filled(dense, layer)(tokens())
    wanted = dense(tokens())[0]
    assert (y - wanted).norm() < 2e-3 * wanted.norm()


def test_gated_nets_become_gated_experts():
    torch.manual_seed(1)
    dense = shaken(SwiGLUFFN(DIM, HIDDEN))
    layer = SparseMoE(DIM, 6, SUM_1, partial(SwiGLUExperts, hidden=HIDDEN // 2))
    y, _ = filled(dense, layer)(tokens())
    torch.testing.assert_close(y, dense(tokens())[0], atol=1e-5, rtol=1e-5)


def test_noise_makes_copies_differ_and_is_a_share_of_their_deviation():
    dense = gelu()
    layer = SparseMoE(DIM, 5, SUM_1, partial(GeluExperts, hidden=HIDDEN))
    w_in = filled(dense, layer, noise=0.1).experts.w_in
    off = w_in - dense.up.weight.T
    assert off.std().item() == pytest.approx(0.1 * dense.up.weight.std().item(), rel=0.1)
    assert not torch.equal(w_in[0], w_in[1])
    again = SparseMoE(DIM, 5, SUM_1, partial(GeluExperts, hidden=HIDDEN))
    assert torch.equal(filled(dense, again, noise=0.1).experts.w_in, w_in)


def multi_head(dense: nn.Module, layer: MHMoE, dim: int) -> float:
    """Fill it; its relative error on tokens that it has not seen."""
    draw = torch.Generator().manual_seed(3)
    scale = 0.5 + torch.rand(dim, generator=draw)
    shift = 0.3 * torch.randn(dim, generator=draw)
    normal = F.layer_norm(torch.randn(1000, dim, generator=draw), (dim,))
    net = dense_ffn(dense)
    assert net is not None
    fill_multi_head(layer, net, scale, shift, normal, Start(), "the layer")
    x = F.layer_norm(tokens(dim), (dim,)) * scale + shift
    wanted = dense(x)[0]
    return float((layer.eval()(x)[0] - wanted).norm() / (wanted - wanted.mean(dim=1)).norm())


@pytest.mark.parametrize("router", [SUM_1, partial(TopKRouter, top_k=2)])
@pytest.mark.parametrize("heads", [2, 3])
def test_a_net_whose_units_read_and_write_within_heads_is_met_by_a_multi_head_layer(heads, router):
    """Units of which each reads one of a few narrow spaces: the heads must find them."""
    torch.manual_seed(4)
    dim, narrow, units = 24, 12 // heads - 1, 30 * heads
    dense = shaken(GeluFFN(dim, units, sub_norm=False))
    spaces = torch.linalg.qr(torch.randn(dim, dim))[0][: narrow * heads].split(narrow)
    owner = torch.randperm(units) % heads
    with torch.no_grad():
        for unit, row in enumerate(dense.up.weight):
            space, column = spaces[owner[unit]], dense.down.weight[:, unit]
            row.copy_(row @ space.T @ space)
            column.copy_(column @ space.T @ space)
    layer = MHMoE(dim, heads, 4 * heads, router, partial(GeluExperts, hidden=17))
    assert multi_head(dense, layer, dim) < 0.02


@pytest.mark.parametrize("sub_norm", [False, True])
def test_any_net_is_met_far_better_than_by_a_fresh_layer(sub_norm):
    dense = shaken(GeluFFN(24, 60, sub_norm))
    layer = MHMoE(24, 2, 8, partial(TopKRouter, top_k=2), partial(GeluExperts, hidden=20))
    assert multi_head(dense, layer, 24) < 0.6


def test_gated_experts_without_biases_read_constants_off_the_feature_of_their_head():
    torch.manual_seed(1)
    dense = shaken(SwiGLUFFN(24, 30))
    layer = MHMoE(24, 2, 8, SUM_1, partial(SwiGLUExperts, hidden=15))
    assert multi_head(dense, layer, 24) < 0.8
    assert layer.moe.experts.b_in is None


def test_sub_tokens_go_to_the_experts_of_their_head():
    dense = shaken(GeluFFN(24, 60, sub_norm=False))
    layer = MHMoE(24, 2, 8, SUM_1, partial(GeluExperts, hidden=20))
    multi_head(dense, layer, 24)
    cut = layer.head_proj(tokens(24)).unflatten(2, (2, 12))
    for head in range(2):
        plan, _ = layer.router(cut[0, :, head], None, None)
        assert plan.expert.unique().tolist() == list(range(4 * head, 4 * head + 4))


def test_units_are_shared_out_so_that_no_head_has_more_than_it_can_hold():
    draw = torch.Generator().manual_seed(2)
    reads, weight = torch.randn(31, 16, generator=draw), torch.rand(31, generator=draw)
    owner, spaces = share_out([reads], weight, 2, 7, 12, draw)
    assert owner.bincount(minlength=3).tolist() == [12, 12, 7]
    assert weight[owner == 2].max() < weight[owner < 2].min()  # those left out count least
    for space in spaces:
        torch.testing.assert_close(space @ space.T, torch.eye(7), atol=1e-5, rtol=0)


def encoder(layout: type, sparse=None, **options) -> BEiT3:
    torch.manual_seed(6)
    built = layout(
        dense=partial(GeluFFN, hidden=HIDDEN, sub_norm=False), sparse=sparse, sparse_every=2,
        **options,
    )  # fmt: skip
    return BEiT3(built, 15, 5, 43, DIM, 4, 2, max_text=11)


EXACT = partial(
    SparseMoE, num_experts=6, router=SUM_1, experts=partial(GeluExperts, hidden=HIDDEN // 2)
)


@pytest.mark.parametrize("layout", [ReleasedLayout, PaperLayout, SharedLayout])
def test_an_encoder_of_any_layout_computes_what_it_did(layout):
    dense, sparse = shaken(encoder(layout)), encoder(layout, EXACT).train()
    done = upcycle_net(dense, sparse, Start())
    assert {layer.path.split(".")[1] for layer in done} == {"1", "3"}
    assert max(layer.error for layer in done) < 1e-5
    assert sparse.training
    image = torch.randn(2, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    text = torch.arange(14).view(2, 7)
    found, wanted = sparse.eval()(image, text).hidden, dense(image, text).hidden
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


def test_a_decoder_computes_what_it_did():
    sparse = partial(
        SparseMoE, num_experts=6, router=SUM_1, experts=partial(SwiGLUExperts, hidden=HIDDEN)
    )
    torch.manual_seed(2)
    make = partial(Decoder, 43, DIM, 3, 2, dense=partial(SwiGLUFFN, hidden=HIDDEN), sparse_every=1)
    old, new = shaken(make()), make(sparse=sparse)
    done = upcycle_net(old, new, Start())
    assert [layer.path for layer in done] == ["layers.0.ffn", "layers.1.ffn", "layers.2.ffn"]
    text = torch.arange(18).view(2, 9)
    torch.testing.assert_close(new.eval()(text).hidden, old(text).hidden, atol=2e-5, rtol=1e-4)


def test_the_error_that_is_told_is_that_of_the_layers():
    sparse = partial(
        MHMoE, num_experts=8, router=partial(TopKRouter, top_k=2),
        experts=partial(GeluExperts, hidden=9),
    )  # fmt: skip
    dense, new = shaken(encoder(SharedLayout)), encoder(SharedLayout, sparse)
    layer = upcycle_net(dense, new, Start())[0]
    norm = dense.get_submodule("blocks.1.ffn_norm.shared")
    x = norm(torch.randn(1, 3001, DIM, generator=torch.Generator().manual_seed(8)))
    wanted = dense.get_submodule(layer.path)(x)[0]
    off = new.eval().get_submodule(layer.path)(x)[0] - wanted
    error = float(off.norm() / (wanted - wanted.mean(dim=1)).norm())
    assert layer.error == pytest.approx(error, rel=0.05)
    assert 0.1 < layer.error < 0.8


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (partial(SparseMoE, experts=partial(GeluExperts, hidden=9)), "neither copies nor slices"),
        (partial(SparseMoE, experts=partial(SwiGLUExperts, hidden=28)), "choose GeluExperts"),
        (
            partial(SparseMoE, experts=partial(GeluExperts, hidden=28, bias=False)),
            "has biases, the experts none",
        ),
        (
            partial(SparseMoE, experts=partial(GeluExperts, hidden=28, sub_norm=True)),
            "has no norm over its hidden units: set sub_norm=False",
        ),
        (partial(SparseMoE, router=ExpertChoiceRouter), "depends on the batch or on chance"),
        (
            partial(
                SparseMoE, router=partial(TopKRouter, scorer=CosineScorer),
                experts=partial(GeluExperts, hidden=28),
            ),
            "use LinearScorer",
        ),
        (partial(SparseMoE, shared=GeluFFN), "leave `shared` out"),
        (partial(MHMoE, num_experts=6), "choose a multiple of 4"),
        (partial(MHMoE, head_layers=2), "head_layers=1"),
    ],
)  # fmt: skip
def test_layers_that_cannot_be_filled_are_refused_by_name(layer, said):
    dense = shaken(encoder(SharedLayout))
    with pytest.raises(ValueError, match=rf"blocks\.1\.ffn\.shared.*{said}"):
        upcycle_net(dense, encoder(SharedLayout, layer), Start())


def test_networks_that_differ_elsewhere_or_not_at_all_are_refused():
    dense = encoder(SharedLayout)
    with pytest.raises(ValueError, match="There is nothing to turn"):
        upcycle_net(dense, encoder(SharedLayout), Start())
    with pytest.raises(
        ValueError, match=r"attention\.sub_norm.* and missing in the new one \(8 such"
    ):
        upcycle_net(dense, encoder(SharedLayout, EXACT, sub_norm=False), Start())
    with pytest.raises(ValueError, match="noise and router_std are 0 or more"):
        Start(noise=-1.0)
