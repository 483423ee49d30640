"""AdamW's moments of a dense network as those of the sparse one that is made from it.

What is copied keeps its moments, and experts of SparseMoE get those of the units that they are made
of. A weight that became `c` times as large has gradients a `c`-th as large, so its moments are
divided by `c` and `c^2`. That an expert reads a share of the tokens only is not allowed for, as in
https://arxiv.org/abs/2212.05055: gradients are mostly noise, whose mean and mean square shrink with
different powers of the share. A state too large means steps too small, until it is forgotten.

Routers and all of MHMoE start without a state; so does what a dense net's norm, turned into
constants, was multiplied into.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mhmoe_mm.checkpoint.moments import Moments
from mhmoe_mm.moe.mh_moe import SparseMoE
from mhmoe_mm.upcycling.dense_ffn import DenseFFN, dense_ffn
from mhmoe_mm.upcycling.sparse import Cut, cut_of

SOURCES = {
    "w_in": "up.weight",
    "b_in": "up.bias",
    "w_gate": "gate.weight",
    "w_out": "down.weight",
    "b_out": "down.bias",
    "norm.weight": "sub_norm.weight",
    "norm.bias": "sub_norm.bias",
}
"""Of the experts' parameters, the dense net's that they are made of."""


def upcycled_moments(
    moments: Mapping[str, Moments], dense: nn.Module, sparse: nn.Module, turned: Sequence[str]
) -> dict[str, Moments]:
    """Of all parameters of the sparse model that have some, by their names in the task.

    Args:
        moments: of the dense model's parameters, by their names in the task.
        dense, sparse: the networks, as `upcycle_net` had them.
        turned: paths in the network of the layers that it turned.
    """
    places = tuple(f"net.{path}." for path in turned)
    result = {name: held for name, held in moments.items() if not name.startswith(places)}
    for path, place in zip(turned, places, strict=True):
        layer, net = sparse.get_submodule(path), dense_ffn(dense.get_submodule(path))
        if not isinstance(layer, SparseMoE):
            continue
        assert net is not None
        sources = {
            own: moments[place + source]
            for own, source in SOURCES.items()
            if place + source in moments
        }
        result |= {
            f"{place}experts.{own}": held
            for own, held in _of_experts(sources, layer, net, path).items()
        }
    return result


def _of_experts(
    sources: Mapping[str, Moments], layer: SparseMoE, net: DenseFFN, where: str
) -> dict[str, Moments]:
    own = dict(layer.experts.named_parameters())
    cut = cut_of(layer, net, where)
    factors = {"w_out": cut.scale, "b_out": cut.scale / cut.slices}
    known = set(own)
    if net.norm is not None and "norm.weight" not in own:
        known -= factors.keys()
    result = {}
    for name in sorted(known & sources.keys()):
        held, factor = sources[name], factors.get(name, 1.0)
        mean, square = (
            stacked(name, old, layer.router.num_experts, cut)
            for old in (held.exp_avg, held.exp_avg_sq)
        )
        assert mean.shape == own[name].shape
        result[name] = Moments(mean / factor, square / factor**2, held.step)
    return result


def stacked(name: str, old: Tensor, experts: int, cut: Cut) -> Tensor:
    """What belongs to a parameter of a dense net in the order of the experts', [experts ...].

    Args:
        name: of the experts' parameter.
        old: of the shape of the dense net's, matrices [out in].
        experts: how many.
        cut: how the net became experts.
    """
    if name == "b_out":  # every expert adds all of it
        return old.expand(experts, -1).contiguous()
    parts = (old.T if old.ndim == 2 else old).chunk(cut.slices, dim=-1 if name != "w_out" else 0)
    return torch.stack(parts).repeat(experts // cut.slices, *[1] * old.ndim)
