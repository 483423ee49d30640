"""The counted costs are those of real layers, and the papers' tables come out."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.moe import Experts, LoopBackend, MHMoE, SparseMoE
from mhmoe_mm.moe.budget import (
    PRESETS,
    LayerShape,
    match,
    match_width,
    mismatch,
    shape_of,
)

SHAPES = {
    "sparse": LayerShape(42, 19, 5, 2),
    "gated": LayerShape(42, 19, 5, 3, matrices=3),
    "multi_head": LayerShape(42, 19, 5, 2, num_heads=3, head_layers=1, merge_layers=1),
    "deep_maps": LayerShape(42, 19, 7, 1, num_heads=2, bias=True, head_layers=2, merge_layers=0),
    "xmoe": LayerShape(42, 19, 5, 2, num_heads=3, bias=True, sub_norm=True, embed_dim=11),
    "shared": LayerShape(42, 19, 5, 2, bias=True, sub_norm=True, shared_hidden=23),
    "dense": LayerShape(42, 19, bias=True, routed=False),
    "dense_sub_norm": LayerShape(42, 19, bias=True, sub_norm=True, routed=False),
}
DIM = 48  # cut by any number of heads of the presets


def built(shape: LayerShape):
    """A layer of a shape, one expert after the other."""
    gelu = partial(GeluFFN, sub_norm=shape.sub_norm)
    layer = shape.build(SwiGLUFFN if shape.matrices == 3 else gelu)
    for module in layer.modules():
        if isinstance(module, Experts):
            module.backend = LoopBackend()
    return layer


@pytest.mark.parametrize("name", [*SHAPES, *PRESETS])
def test_counts_are_those_of_the_layer_built(name):
    shape = SHAPES[name] if name in SHAPES else PRESETS[name](DIM)
    layer = built(shape)
    assert shape.parameters == sum(p.numel() for p in layer.parameters())
    if isinstance(layer, SparseMoE | MHMoE):
        assert shape_of(layer) == replace(shape, shared_hidden=0)
    tokens = 13
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(1, tokens, shape.dim))
    assert counter.get_total_flops() == 2 * tokens * shape.macs


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_at_the_papers_width_has_the_counted_parameters(name):
    shape = PRESETS[name](768)
    with torch.device("meta"):
        assert shape.parameters == sum(p.numel() for p in built(shape).parameters())


def test_presets_cost_what_the_sparse_layer_does_where_they_should():
    for name, make in PRESETS.items():
        smoe = PRESETS["smoe_shared" if "shared" in name else "smoe"](768)
        parameters, macs = mismatch(smoe, make(768))
        if not name.startswith("paper1"):
            assert abs(macs) < 0.001, name
        if not name.startswith(("paper1", "dense")) and "experts" not in name:
            assert abs(parameters) < 0.032, name


def test_the_second_papers_layers_cost_what_its_tables_say():
    """Parameters without the router, in millions, and multiply-adds, at dim 768."""
    expected = {
        "smoe": 37.749,
        "fine_grained": 37.749,
        "mh_moe_h2": 36.569,
        "mh_moe_h3": 38.928,
    }
    for name, millions in expected.items():
        shape = PRESETS[name](768)
        biases = (shape.head_layers + shape.merge_layers) * 768
        assert round((shape.parameters - shape.router_parameters - biases) / 1e6, 3) == millions
        assert shape.active_macs == 4_718_592
    assert PRESETS["dense"](768).active_macs == 4_718_592


def test_the_first_papers_code_costs_four_times_its_sparse_baseline():
    top1 = replace(PRESETS["paper1_code"](768), top_k=1)
    smoe = LayerShape(768, 3072, 8, 1)
    assert top1.active_macs / smoe.active_macs == 4.0
    experts_only = replace(top1, head_layers=0, merge_layers=0)
    assert experts_only.active_macs / smoe.active_macs == 3.75


@pytest.mark.parametrize(("heads", "hidden", "experts"), [(2, 768, 41), (3, 512, 93)])
def test_the_solver_finds_the_papers_layers(heads, hidden, experts):
    base = PRESETS["smoe"](768)
    shape = match(base, heads, heads)
    assert (shape.hidden, shape.num_experts) == (hidden, experts)
    parameters, macs = mismatch(base, shape)
    assert macs == 0
    assert abs(parameters) < 0.012
    assert match(base, heads, heads, multiple_of=8).num_experts % 8 == 0


def test_the_papers_equation_nine_comes_out():
    """Two-matrix experts, hidden 4 dim, top-1, three heads: hidden 3 dim and 4E - 1 experts."""
    shape = match(LayerShape(768, 3072, 8, 1), num_heads=3, top_k=1)
    assert (shape.hidden, shape.num_experts) == (3 * 768, 4 * 8 - 1)


def test_a_width_alone_makes_multiply_adds_or_parameters_equal():
    base = PRESETS["smoe"](768)
    for experts in (11, 43):
        same_macs = match_width(base, 4, experts, 3, "macs")
        same_parameters = match_width(base, 4, experts, 3, "parameters")
        assert {(s.num_experts, s.top_k, s.num_heads) for s in (same_macs, same_parameters)} == {
            (experts, 3, 4)
        }
        assert abs(mismatch(base, same_macs)[1]) < 0.001
        assert abs(mismatch(base, same_parameters)[0]) < 0.003
    with pytest.raises(ValueError, match=r"9,000,000 .* too few for 9000000 experts"):
        match_width(LayerShape(3000, 1000, 3, 1), 2, 9_000_000, 2, "parameters", projections=1)


def test_a_match_that_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="too few for top_k=2"):
        match(LayerShape(768, 200, 8, 1), 2, 2)
    with pytest.raises(ValueError, match="num_heads=5 does not divide dim=768"):
        match(PRESETS["smoe"](768), 5, 2)
    for name in ("dense", "smoe_shared"):
        with pytest.raises(ValueError, match="A dense net or a shared expert is built by `dense`"):
            PRESETS[name](48).build()
