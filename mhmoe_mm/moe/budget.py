"""What a feed-forward layer costs, and which layers cost the same.

A comparison of mixtures is worth little unless both sides have the same parameters and the same
multiply-adds per token. `LayerShape` counts both from a layer's numbers, `match` solves for a
multi-head layer that equals a sparse one, and `PRESETS` are the papers' own configurations.

Formulas: https://arxiv.org/abs/2411.16205, equations 6 to 9, with the router's and the biases'
parameters, which the paper leaves out, counted too.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from mhmoe_mm.moe.layer_shape import LayerShape, shape_of

__all__ = ["PRESETS", "LayerShape", "match", "match_width", "mismatch", "shape_of"]


def match(
    base: LayerShape, num_heads: int, top_k: int, multiple_of: int = 1, projections: int = 2
) -> LayerShape:
    """The multi-head layer that costs what `base` costs.

    Multiply-adds are equal to within rounding of the inner width, parameters as nearly as whole
    experts allow; the router's and the biases' are left out, as in the paper.

    Args:
        base: a sparse layer with one head.
        num_heads, top_k: of the layer sought; num_heads divides base.dim.
        multiple_of: the number of experts is rounded to a multiple of this (expert parallelism).
        projections: head and merge maps together, half of each; of an odd number the head has one
            more.

    Raises:
        ValueError: the maps alone cost more than the whole base layer, or the heads do not divide.
    """
    solved = match_width(base, num_heads, base.num_experts, top_k, "macs", projections)
    parameters = _experts_parameters(base, projections)
    experts = parameters / (base.matrices * solved.width * solved.hidden)
    return replace(solved, num_experts=max(round(experts / multiple_of), 1) * multiple_of)


def match_width(
    base: LayerShape,
    num_heads: int,
    num_experts: int,
    top_k: int,
    equal: Literal["macs", "parameters"] = "macs",
    projections: int = 2,
) -> LayerShape:
    """The multi-head layer with so many experts whose inner width gives it the multiply-adds of
    `base`, or its parameters, to within rounding; the other of the two follows.

    Raises:
        ValueError: the maps alone cost more than the whole base layer, or the heads do not divide.
    """
    if base.dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide dim={base.dim}.")
    maps = projections * base.dim**2
    if equal == "macs":
        budget = base.top_k * base.matrices * base.dim * base.hidden - maps
        what, where = "multiply-adds per token", f"top_k={top_k}"
        hidden = round(budget / (top_k * base.matrices * base.dim))
    else:
        budget = _experts_parameters(base, projections)
        what, where = "parameters", f"{num_experts} experts"
        hidden = round(budget / (num_experts * base.matrices * (base.dim // num_heads)))
    if hidden < 1:
        raise ValueError(
            f"The head and merge maps of dim={base.dim} cost {maps:,} {what} and leave "
            f"{budget:,.0f} for the experts: too few for {where}."
        )
    return replace(
        base,
        hidden=hidden,
        num_experts=num_experts,
        top_k=top_k,
        num_heads=num_heads,
        head_layers=projections - projections // 2,
        merge_layers=projections // 2,
    )


def _experts_parameters(base: LayerShape, projections: int) -> int:
    """Of all experts of a layer that has as many parameters as `base` and so many maps."""
    return base.num_experts * base.matrices * base.dim * base.hidden - projections * base.dim**2


def mismatch(base: LayerShape, other: LayerShape) -> tuple[float, float]:
    """How far `other` is from `base`: (parameters, multiply-adds without routers), as shares."""
    parameters = (other.parameters - other.router_parameters) / (
        base.parameters - base.router_parameters
    )
    return parameters - 1, other.active_macs / base.active_macs - 1


def _paper2(dim: int, num_heads: int, num_experts: int) -> LayerShape:
    hidden = (8 * dim // 3 - 2 * dim // 3) // num_heads
    return LayerShape(
        dim=dim,
        hidden=hidden,
        num_experts=num_experts,
        top_k=num_heads,
        num_heads=num_heads,
        matrices=3,
        head_layers=1,
        merge_layers=1,
    )


def _paper1(dim: int, hidden: int) -> LayerShape:
    return LayerShape(
        dim=dim,
        hidden=hidden,
        num_experts=8,
        top_k=2,
        num_heads=4,
        bias=True,
        sub_norm=True,
        head_layers=1,
        merge_layers=1,
        embed_dim=16,
    )


def _shared(make: Callable[[int], LayerShape], dim: int) -> LayerShape:
    """With an expert for every token besides, as wide as one of the plain sparse layer."""
    return replace(make(dim), shared_hidden=8 * dim // 3)


def _solved(dim: int, num_heads: int, top_k: int, **options: int) -> LayerShape:
    """As cheap as the plain sparse layer."""
    return match(_smoe(dim), num_heads, top_k, **options)


def _smoe(dim: int) -> LayerShape:
    return LayerShape(dim, 8 * dim // 3, 8, matrices=3)


def _fine_grained(dim: int) -> LayerShape:
    return LayerShape(dim, 4 * dim // 3, 16, top_k=2, matrices=3)


_h2 = partial(_paper2, num_heads=2, num_experts=40)
_h3 = partial(_paper2, num_heads=3, num_experts=96)

PRESETS: dict[str, Callable[[int], LayerShape]] = {
    "dense": lambda dim: LayerShape(dim, 8 * dim // 3, matrices=3, routed=False),
    "smoe": _smoe,
    "fine_grained": _fine_grained,
    "mh_moe_h2": _h2,
    "mh_moe_h3": _h3,
    "mh_moe_h4": partial(_solved, num_heads=4, top_k=4),
    "mh_moe_h6": partial(_solved, num_heads=6, top_k=6),
    "mh_moe_h8": partial(_solved, num_heads=8, top_k=8),
    # Table 2 of the second paper.
    "smoe_shared": partial(_shared, _smoe),
    "fine_grained_shared": partial(_shared, _fine_grained),
    "mh_moe_h2_shared": partial(_shared, _h2),
    "mh_moe_h3_shared": partial(_shared, _h3),
    # Its table 5: what a map does not take, the experts have.
    "mh_moe_h2_no_maps": partial(_solved, num_heads=2, top_k=2, projections=0),
    "mh_moe_h2_head_only": partial(_solved, num_heads=2, top_k=2, projections=1),
    "mh_moe_h2_merge_only": lambda dim: replace(
        _solved(dim, 2, 2, projections=1), head_layers=0, merge_layers=1
    ),
    # Table 7 of the first paper: deeper maps.
    "mh_moe_h2_maps2": partial(_solved, num_heads=2, top_k=2, projections=4),
    "mh_moe_h2_maps3": partial(_solved, num_heads=2, top_k=2, projections=6),
    # Figure 6 of the first paper: more experts at equal multiply-adds, and so more parameters.
    **{
        f"mh_moe_h2_experts{number}": partial(_paper2, num_heads=2, num_experts=number)
        for number in (10, 20, 80, 160, 320)
    },
    # The first paper writes an inner width of 4 * beta * dim with beta >= 63/64 and counts its
    # parameters with 4 times that; its code ran 15/16 of 16 * dim, at four times the compute.
    "paper1_text": lambda dim: _paper1(dim, hidden=4 * dim * 63 // 64),
    "paper1_code": lambda dim: _paper1(dim, hidden=15 * dim),
}
"""Layers of the papers by name, for any dim; the numbers printed there are those at dim 768."""
