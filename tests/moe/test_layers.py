"""Properties of SparseMoE and MHMoE, whatever the router, expert form or backend."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mhmoe_mm.moe import (
    EveryBackend,
    GeluExperts,
    GroupedBackend,
    Kinds,
    LoopBackend,
    MHMoE,
    SparseMoE,
    SwiGLUExperts,
    TopKRouter,
)
from tests.moe.routers import DROPLESS, ROUTERS

BATCH, SEQ, DIM, HEADS, EXPERTS, HIDDEN = 3, 11, 42, 3, 5, 19
FORMS = {
    "gelu": partial(GeluExperts, hidden=HIDDEN),
    "gelu_sub_norm": partial(GeluExperts, hidden=HIDDEN, sub_norm=True),
    "gelu_no_bias": partial(GeluExperts, hidden=HIDDEN, bias=False),
    "swiglu": partial(SwiGLUExperts, hidden=HIDDEN),
    "swiglu_bias_sub_norm": partial(SwiGLUExperts, hidden=HIDDEN, bias=True, sub_norm=True),
}


def make(router="top2", form="gelu", seed=1, **options) -> MHMoE:
    torch.manual_seed(seed)
    return MHMoE(DIM, HEADS, EXPERTS, router=ROUTERS[router], experts=FORMS[form], **options)


def sample(seed=2, padded=True):
    torch.manual_seed(seed)
    x = torch.randn(BATCH, SEQ, DIM)
    keep = torch.arange(SEQ)[None] < torch.tensor([[SEQ], [SEQ - 4], [1]])
    kinds = Kinds((torch.arange(SEQ) >= 5).long().expand(BATCH, SEQ), ("image", "text"))
    return x, keep if padded else None, kinds


def assert_same_load(load, other):
    assert load.names == other.names
    torch.testing.assert_close(load[:-1], other[:-1])


def run(layer, x, keep, kinds):
    x = x.clone().requires_grad_()
    y, load = layer(x, keep, kinds)
    probe = torch.linspace(-1, 1, y.numel()).view_as(y)
    ((y * probe).sum() + load.balance + load.z_loss).backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    layer.zero_grad()
    return y, load, x.grad, grads


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("router", ROUTERS)
def test_backends_agree_in_output_load_and_gradients(router, form, padded):
    layer, (x, keep, kinds) = make(router, form), sample(padded=padded)
    layer.moe.experts.backend = LoopBackend()
    y, load, grad_x, grads = run(layer, x, keep, kinds)
    for backend in (GroupedBackend(1), GroupedBackend(7), GroupedBackend(16), EveryBackend()):
        layer.moe.experts.backend = backend
        y2, load2, grad_x2, grads2 = run(layer, x, keep, kinds)
        torch.testing.assert_close(y2, y)
        torch.testing.assert_close(grad_x2, grad_x, atol=1e-5, rtol=1e-4)
        assert_same_load(load2, load)
        torch.testing.assert_close(grads2, grads, atol=2e-5, rtol=1e-4)


def test_backends_agree_when_one_expert_takes_all_and_when_nobody_is_real():
    layer, (x, keep, kinds) = make(), sample()
    with torch.no_grad():
        layer.router.scorer.weight.zero_()
    answers = []
    for backend in (LoopBackend(), GroupedBackend(16), EveryBackend()):
        layer.moe.experts.backend = backend
        answers.append((layer(x, keep, kinds)[0], layer(x, torch.zeros_like(keep), kinds)))
    for answer, _ in answers[1:]:
        torch.testing.assert_close(answers[0][0], answer)
    for _, (y, load) in answers:
        torch.testing.assert_close(y, layer.merge_proj[0].bias.expand_as(y))
        assert load.count.sum() == 0
        assert load.balance == 0


def test_grouped_backend_follows_the_loop_in_bfloat16():
    layer, (x, keep, kinds) = make("top2", "swiglu"), sample()
    layer.moe.experts.backend = LoopBackend()
    exact, _ = layer(x, keep, kinds)
    layer.moe.experts.backend = GroupedBackend(16)
    with torch.autocast("cpu", torch.bfloat16):
        y, load = layer(x, keep, kinds)
    assert load.prob.dtype == torch.float32  # the router stays exact under autocast
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.03, rtol=0.1)


@pytest.mark.parametrize("router", DROPLESS)
def test_padding_changes_neither_outputs_nor_load(router):
    layer, (x, keep, kinds) = make(router), sample()
    y, load = layer(x, keep, kinds)
    noise = torch.where(keep[..., None], x, 100 * torch.randn_like(x))
    y2, load2 = layer(noise, keep, kinds)
    torch.testing.assert_close(y2[keep], y[keep])
    assert_same_load(load2, load)
    assert load.token.sum() == keep.sum() * HEADS
    alone, _ = layer(x[1:2, : SEQ - 4], None, None)  # and an unpadded batch says the same
    torch.testing.assert_close(alone[0], y[1, : SEQ - 4])


@pytest.mark.parametrize("router", ["top2_capacity", "switch", "expert_choice"])
def test_padding_takes_no_room_where_room_is_limited(router):
    layer, (x, keep, kinds) = make(router), sample()
    y, load = layer(x, keep, kinds)
    noise = torch.where(keep[..., None], x, 100 * torch.randn_like(x))
    y2, load2 = layer(noise, keep, kinds)
    torch.testing.assert_close(y2[keep], y[keep])
    assert_same_load(load2, load)


@pytest.mark.parametrize("router", DROPLESS)
def test_tokens_are_answered_alike_in_any_order_and_company(router):
    layer, (x, _, _) = make(router), sample()
    y, _ = layer(x)
    order = torch.randperm(SEQ)
    torch.testing.assert_close(layer(x[:, order])[0], y[:, order])
    torch.testing.assert_close(layer(x[2:])[0], y[2:])


def test_one_head_without_maps_is_the_sparse_layer():
    torch.manual_seed(3)
    many = MHMoE(DIM, 1, EXPERTS, experts=FORMS["gelu"], head_layers=0, merge_layers=0)
    torch.manual_seed(3)
    plain = SparseMoE(DIM, EXPERTS, experts=FORMS["gelu"])
    x, keep, kinds = sample()
    (y, load), (y2, load2) = many(x, keep, kinds), plain(x, keep, kinds)
    assert torch.equal(y, y2)
    assert_same_load(load, load2)


def test_sub_tokens_are_cut_token_major_and_head_minor():
    layer = make(head_layers=0, merge_layers=0)
    x, _, _ = sample()
    y, _ = layer(x)
    width = DIM // HEADS
    for head in range(HEADS):
        piece = x[:, :, head * width : (head + 1) * width]
        torch.testing.assert_close(
            y[:, :, head * width : (head + 1) * width], layer.moe(piece.contiguous())[0]
        )


def test_a_sub_token_residual_is_added_before_the_merge():
    plain, residual = make(), make(subtoken_residual=True)
    x, _, _ = sample()
    merged = nn.functional.linear(plain.head_proj(x), plain.merge_proj[0].weight)
    torch.testing.assert_close(residual(x)[0] - plain(x)[0], merged, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("head", "merge"), [(0, 1), (1, 0), (2, 3), (0, 0)])
def test_head_and_merge_maps_have_the_layers_asked_for(head, merge):
    layer = make(head_layers=head, merge_layers=merge)
    for maps, number in ((layer.head_proj, head), (layer.merge_proj, merge)):
        assert sum(isinstance(m, nn.Linear) for m in maps) == number
        assert sum(isinstance(m, nn.ReLU) for m in maps) == max(number - 1, 0)
    assert layer(sample()[0])[0].shape == (BATCH, SEQ, DIM)


class _Double(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, x, keep, kinds):
        return 2 * x, None


def test_a_shared_expert_reads_whole_tokens_besides_the_chosen_ones():
    x, keep, kinds = sample()
    plain, shared = make(), make(shared=_Double)
    assert shared.shared.width == DIM
    torch.testing.assert_close(shared(x, keep, kinds)[0], plain(x, keep, kinds)[0] + 2 * x)


def test_released_init_statistics_are_met():
    """Bounds measured on the released layer at d=768, h=4, E=8, hidden 1536."""
    torch.manual_seed(0)
    layer = MHMoE(768, 4, 8, experts=partial(SwiGLUExperts, hidden=1536))
    for tensor, bound in (
        (layer.head_proj[0].weight, 0.0442),
        (layer.head_proj[0].bias, 768**-0.5),
        (layer.merge_proj[0].weight, 0.0625),
        (layer.router.scorer.weight, 0.0722),
        (layer.moe.experts.w_in, 192**-0.5),
        (layer.moe.experts.w_gate, 192**-0.5),
        (layer.moe.experts.w_out, 1536**-0.5),
    ):
        assert 0.97 * bound < tensor.abs().max() < 1.003 * bound
        assert abs(tensor.std() / (bound / 3**0.5) - 1) < 0.05
    assert not layer.merge_proj[0].bias.any()


def test_recomputation_counts_every_token_once():
    layer, (x, keep, kinds) = make(), sample()
    y, load, grad_x, grads = run(layer, x, keep, kinds)

    def recomputed(x, keep, kinds):
        return checkpoint(layer, x, keep, kinds, use_reentrant=False)

    recomputed.named_parameters, recomputed.zero_grad = layer.named_parameters, layer.zero_grad
    y2, load2, grad_x2, grads2 = run(recomputed, x, keep, kinds)
    torch.testing.assert_close((y2, grad_x2, grads2), (y, grad_x, grads))
    assert_same_load(load2, load)


@pytest.mark.compile
def test_every_router_compiles_as_one_graph_with_the_same_numbers():
    """In a process of its own: the shape checks of this one do not compile, and users have none."""
    command = [sys.executable, "-m", "tests.moe.compiled"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=480, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == list(ROUTERS)


def test_impossible_settings_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"dim=42 features cannot be cut into num_heads=4"):
        MHMoE(42, 4)
    with pytest.raises(ValueError, match=r"top_k=6 experts .* num_experts=5"):
        MHMoE(42, 3, 5, router=partial(TopKRouter, top_k=6))
    with pytest.raises(ValueError, match="head or merge layers"):
        MHMoE(42, 3, head_layers=-1)
