"""Costs of networks are those that a counter of operations finds."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import PaperLayout
from mhmoe_mm.models.net_cost import net_cost
from mhmoe_mm.moe import LoopBackend, MHMoE, SparseMoE
from tests.models.nets import DIM, LAYERS, dense_ffn, small_net

TOKENS, WIDTH = 13, 42
FEED_FORWARD = {
    "dense": GeluFFN(WIDTH, 19),
    "sparse": SparseMoE(WIDTH, 5, shared=lambda dim: GeluFFN(dim, 11)),
    "multi_head": MHMoE(WIDTH, 3, 7, shared=lambda dim: GeluFFN(dim, 11), head_layers=2),
}


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_multiply_adds_are_those_that_happen(name: str):
    layer = FEED_FORWARD[name]
    for module in layer.modules():
        if isinstance(module, SparseMoE):
            module.experts.backend = LoopBackend()
    cost = net_cost(nn.ModuleDict({"ffn": layer, "other": nn.Linear(3, 5)}))
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, TOKENS, WIDTH))
    assert counter.get_total_flops() == 2 * TOKENS * (cost.macs + cost.router_macs)
    assert cost.parameters == cost.feed_forward_parameters + 3 * 5 + 5
    assert cost.sparse_layers == (name != "dense")


def test_parameters_that_no_token_of_a_batch_reaches_are_idle():
    moe = SparseMoE(WIDTH, 5)
    cost = net_cost(nn.ModuleDict({"ffn": moe}))
    _, load = moe(torch.randn(1, 1, WIDTH))
    reached = int((load.count > 0).sum())
    experts = sum(p.numel() for p in moe.experts.parameters())
    assert cost.parameters - cost.active_parameters == experts * (5 - reached) // 5


def test_a_token_goes_through_one_of_several_branches():
    net = small_net(PaperLayout(dense=dense_ffn, fused_layers=2))
    cost = net_cost(net)
    assert cost.macs == LAYERS * 2 * DIM * 29
    assert cost.active_parameters == cost.parameters == sum(p.numel() for p in net.parameters())
