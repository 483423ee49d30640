"""BitNet: products in few bits equal the formula written out, in outputs and gradients."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.moe import (
    BitNet,
    GeluExperts,
    GroupedBackend,
    LoopBackend,
    MHMoE,
    SwiGLUExperts,
    TopKRouter,
)
from mhmoe_mm.moe.quantization import QuantizedLinear

DIM, HEADS, EXPERTS, HIDDEN, BATCH, SEQ = 42, 3, 5, 19, 3, 11
BIT = BitNet()


def ternary(matrix: Tensor) -> Tensor:
    """One matrix, entry by entry; gradients pass as if nothing had been rounded."""
    size = sum(abs(w) for row in matrix.tolist() for w in row) / matrix.numel()
    rounded = [[max(-1, min(1, round(w / size))) * size for w in row] for row in matrix.tolist()]
    return matrix + (torch.tensor(rounded) - matrix).detach()


def eight_bits(rows: Tensor) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1])
    largest = [max(abs(v) for v in row) for row in flat.tolist()]
    rounded = [
        [round(v / most * 127) * most / 127 for v in row]
        for row, most in zip(flat.tolist(), largest, strict=True)
    ]
    return rows + (torch.tensor(rounded).view(rows.shape) - rows).detach()


def grads(y: Tensor, x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a loss that tells the outputs apart."""
    probe = torch.linspace(-1, 1, y.numel()).view_as(y)
    return torch.autograd.grad((y * probe).sum(), [x, *parameters])


def sample() -> Tensor:
    return torch.randn(BATCH, SEQ, DIM, generator=torch.Generator().manual_seed(2)).requires_grad_()


def assert_same(module, x: Tensor, found: Tensor, expected: Tensor) -> None:
    parameters = list(module.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        grads(found, x, parameters), grads(expected, x, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_weights_are_ternary_by_matrix_and_rows_have_255_steps():
    weight = torch.randn(EXPERTS, 7, 13) * torch.logspace(-2, 2, EXPERTS)[:, None, None]
    rounded = BIT.weight(weight)
    for one, exact in zip(rounded, weight, strict=True):
        size = exact.abs().mean().item()
        assert {round(value / size, 3) for value in one.flatten().tolist()} == {-1.0, 0.0, 1.0}
        torch.testing.assert_close(BIT.weight(exact), one)
    row = torch.randn(5, 1009) * torch.logspace(-3, 3, 5)[:, None]
    steps = BIT.row(row) / row.abs().amax(dim=1, keepdim=True) * 127
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert steps.round().abs().amax(dim=1).tolist() == [127.0] * 5
    assert len(steps[0].round().unique()) > 100


def test_zeros_stay_zeros():
    assert not BIT.weight(torch.zeros(3, 5)).any()
    assert not BIT.row(torch.zeros(3, 5)).any()


def test_a_linear_map_equals_the_formula():
    torch.manual_seed(1)
    module, x = QuantizedLinear(DIM, HIDDEN, True, BIT), sample()
    expected = eight_bits(x) @ ternary(module.weight).T + module.bias
    assert_same(module, x, module(x), expected)


def test_dense_nets_equal_the_formula():
    torch.manual_seed(1)
    swiglu, x = SwiGLUFFN(DIM, HIDDEN, BIT), sample()
    gate, up, down = (ternary(m.weight).T for m in (swiglu.gate, swiglu.up, swiglu.down))
    row = eight_bits(x)
    expected = eight_bits(F.silu(row @ gate) * (row @ up)) @ down
    assert_same(swiglu, x, swiglu(x)[0], expected)

    gelu = GeluFFN(DIM, HIDDEN, quantization=BIT)
    hidden = gelu.sub_norm(F.gelu(row @ ternary(gelu.up.weight).T + gelu.up.bias))
    expected = eight_bits(hidden) @ ternary(gelu.down.weight).T + gelu.down.bias
    assert_same(gelu, x, gelu(x)[0], expected)


def test_attention_equals_attention_with_rounded_maps():
    torch.manual_seed(1)
    attention, x = CausalAttention(DIM, HEADS, quantization=BIT), sample()
    parts = []
    maps = (attention.query, attention.key, attention.value)
    query, key, value = (eight_bits(x) @ ternary(m.weight).T for m in maps)
    ahead = torch.ones(SEQ, SEQ).triu(1).bool()
    for part in torch.arange(DIM).split(DIM // HEADS):
        score = query[..., part] @ key[..., part].transpose(1, 2) / (DIM // HEADS) ** 0.5
        parts.append(score.masked_fill(ahead, -torch.inf).softmax(dim=2) @ value[..., part])
    expected = eight_bits(torch.cat(parts, dim=2)) @ ternary(attention.out.weight).T
    assert_same(attention, x, attention(x, None, None), expected)


FORMS = {
    "gelu": partial(GeluExperts, hidden=HIDDEN, sub_norm=True),
    "swiglu": partial(SwiGLUExperts, hidden=HIDDEN, bias=True),
}


def layer_of(form: str, backend=LoopBackend, **options) -> MHMoE:
    torch.manual_seed(1)
    experts = partial(FORMS[form], quantization=BIT, backend=backend)
    return MHMoE(DIM, HEADS, EXPERTS, partial(TopKRouter, top_k=2), experts, **options)


def plain(layer: MHMoE, x: Tensor, form: str, maps: bool) -> Tensor:
    """The layer, one sub-token after the other."""

    def projected(module, rows: Tensor) -> Tensor:
        if maps:
            return eight_bits(rows) @ ternary(module.weight).T + module.bias
        return F.linear(rows, module.weight, module.bias)

    experts, rows = layer.moe.experts, []
    sub_tokens = projected(layer.head_proj[0], x).reshape(-1, DIM // HEADS)
    for row in sub_tokens:
        prob = (layer.router.scorer.weight @ row).softmax(dim=0)
        answer = torch.zeros(DIM // HEADS)
        for e in prob.topk(2).indices.tolist():
            read = eight_bits(row)
            hidden = read @ ternary(experts.w_in[e]) + experts.b_in[e]
            if form == "gelu":
                hidden = F.layer_norm(F.gelu(hidden), (HIDDEN,))  # norms start as ones and zeros
            else:
                hidden = hidden * F.silu(read @ ternary(experts.w_gate[e]) + experts.b_gate[e])
            out = eight_bits(hidden) @ ternary(experts.w_out[e]) + experts.b_out[e]
            answer = answer + prob[e] * out
        rows.append(answer)
    return projected(layer.merge_proj[0], torch.stack(rows).view(x.shape))


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", [LoopBackend, partial(GroupedBackend, 7)])
def test_experts_equal_the_formula_and_maps_are_rounded_only_if_asked(backend, form, maps):
    layer = layer_of(form, backend, quantization=BIT if maps else None)
    with torch.no_grad():  # matrices of different sizes, so that rounding them together would show
        layer.moe.experts.w_in.mul_(torch.linspace(0.5, 3, EXPERTS)[:, None, None])
        for bias in (layer.moe.experts.b_in, layer.moe.experts.b_out):
            bias.mul_(3)
    x = sample()
    names = [name for name, _ in layer.named_parameters() if "norm" not in name]
    parameters = [layer.get_parameter(name) for name in names]
    found, expected = layer(x)[0], plain(layer, x, form, maps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    pairs = zip(
        ["x", *names], grads(found, x, parameters), grads(expected, x, parameters), strict=True
    )
    for name, ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m)


def test_rounding_follows_bfloat16():
    layer, x = layer_of("swiglu", GroupedBackend), sample()
    exact = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)[0]
    assert y.dtype == torch.bfloat16
    assert (y.float() - exact).norm() < 0.05 * exact.norm()
