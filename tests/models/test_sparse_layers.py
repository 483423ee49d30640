"""The encoder with the real sparse layers in it."""

import copy
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mhmoe_mm.moe import GeluExperts, MHMoE, SparseMoE, TopKRouter

from .nets import BATCH, LAYOUTS, PATCHES, VOCAB, dense_ffn, small_inputs, small_net

EXPERTS = partial(GeluExperts, hidden=13)
SPARSE = {
    "smoe": partial(SparseMoE, num_experts=5, router=partial(TopKRouter, top_k=2), experts=EXPERTS),
    "mhmoe": partial(MHMoE, num_heads=2, num_experts=5, experts=EXPERTS),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.mark.parametrize("sparse", SPARSE)
def test_only_real_tokens_are_routed_and_padding_changes_no_output(layout, sparse):
    image, text, pad = small_inputs()
    net = small_net(layout(dense=dense_ffn, sparse=SPARSE[sparse]))
    keep = torch.cat([torch.ones(BATCH, PATCHES + 1, dtype=torch.bool), ~pad], dim=1)
    encoded = net(image, text, pad)
    again = net(image, torch.where(pad, (text + 1) % VOCAB, text), pad)
    torch.testing.assert_close(encoded.hidden[keep], again.hidden[keep])
    pieces = 2 if sparse == "mhmoe" else 1
    for layer in (1, 3):
        loads = [
            load for path, load in encoded.loads.items() if path.startswith(f"blocks.{layer}.")
        ]
        images, texts = torch.stack([load.token for load in loads]).sum(0).tolist()
        assert images == BATCH * (PATCHES + 1) * pieces
        assert texts == (~pad).sum() * pieces
        assert sum(load.count.sum() for load in loads) == 2 * (images + texts)
    for path in encoded.loads:
        assert isinstance(net.get_submodule(path), SparseMoE | MHMoE)


def test_recomputed_sparse_layers_have_the_same_gradients_and_loads(layout):
    image, text, pad = small_inputs()
    net = small_net(layout(dense=dense_ffn, sparse=SPARSE["mhmoe"]), drop_path=0.3).train()
    again = copy.deepcopy(net)
    for block in again.blocks:
        block.forward = lambda *x, forward=block.forward: checkpoint(
            forward, *x, use_reentrant=False
        )
    results = []
    for candidate in (net, again):
        torch.manual_seed(3)
        encoded = candidate(image, text, pad)
        balance = sum(load.balance for load in encoded.loads.values())
        (encoded.hidden.square().sum() + balance).backward()
        grads = {name: p.grad for name, p in candidate.named_parameters() if p.grad is not None}
        results.append(grads | {path: load.count for path, load in encoded.loads.items()})
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name])
