"""The counted costs of a decoder are those of the one that was built."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.decoder_cost import decoder_cost, part_costs
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.models.positions import LearnedPositions
from mhmoe_mm.moe import Experts, LoopBackend
from mhmoe_mm.moe.budget import PRESETS

VOCAB, DIM, LAYERS, HEADS, CONTEXT = 31, 48, 3, 2, 13
FIRST = {
    "dense": partial(GeluFFN, hidden=29),
    "positions": LearnedPositions,
    "norm": nn.LayerNorm,
    "attention": partial(CausalAttention, bias=True, sub_norm=True),
}


def net(preset: str, **options) -> Decoder:
    shape = PRESETS[preset](DIM)
    made = Decoder(
        VOCAB, DIM, LAYERS, HEADS, CONTEXT, sparse=lambda dim: shape.build(SwiGLUFFN), **options
    )
    for module in made.modules():
        if isinstance(module, Experts):
            module.backend = LoopBackend()
    return made


@pytest.mark.parametrize("preset", ["dense", "smoe", "mh_moe_h3_shared", "paper1_text"])
@pytest.mark.parametrize("options", [FIRST, {}], ids=["first", "second"])
def test_parameters_and_multiply_adds_are_those_of_the_decoder_built(preset, options):
    made = net(preset, **options)
    cost = decoder_cost(made, CONTEXT)
    assert cost.parameters == sum(p.numel() for p in made.parameters())
    rows = 2
    # In plain products, for the counter knows no fused attention of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        made.scores(made(torch.randint(VOCAB, (rows, CONTEXT))).hidden)
    assert counter.get_total_flops() == 2 * rows * CONTEXT * cost.macs


def test_parts_are_counted_one_by_one():
    made = net("smoe", **FIRST)
    parts = part_costs(made, CONTEXT)
    assert list(parts) == [
        "embedding",
        *(f"layers.{number}.{name}" for number in range(LAYERS) for name in ("attention", "ffn")),
        "output",
    ]
    embedding = VOCAB * DIM + CONTEXT * DIM
    assert parts["embedding"] == (embedding, embedding, 0)
    attention = 4 * DIM * DIM + 4 * DIM + 2 * DIM + 2 * DIM
    assert parts["layers.2.attention"] == (attention, attention, 4 * DIM**2 + 2 * CONTEXT * DIM)
    sparse = PRESETS["smoe"](DIM)
    assert parts["layers.1.ffn"].parameters == sparse.parameters + 2 * DIM
    assert parts["layers.1.ffn"].macs == sparse.macs
    active = sparse.expert_parameters / 8 + sparse.router_parameters + 2 * DIM
    assert parts["layers.1.ffn"].active_parameters == pytest.approx(active)
    assert parts["output"] == (2 * DIM, 2 * DIM, VOCAB * DIM)


def test_nets_of_one_budget_cost_the_same_but_for_the_routers():
    costs = {}
    for name in ("dense", "mh_moe_h2"):
        shape = PRESETS[name](768)
        with torch.device("meta"):
            made = Decoder(VOCAB, 768, 4, 12, 64, sparse=lambda dim, s=shape: s.build(SwiGLUFFN))
        costs[name] = decoder_cost(made, 64)
    routers = 2 * 768 * 40  # of two sparse layers
    assert costs["mh_moe_h2"].macs - costs["dense"].macs == routers
