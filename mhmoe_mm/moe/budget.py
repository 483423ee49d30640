"""What a feed-forward layer costs, and which layers cost the same.

A comparison of mixtures is worth little unless both sides have the same parameters and the same
multiply-adds per token. `LayerShape` counts both from a layer's numbers, `match` solves for a
multi-head layer that equals a sparse one, and `PRESETS` are the papers' own configurations.

Formulas: https://arxiv.org/abs/2411.16205, equations 6 to 9, with the router's and the biases'
parameters, which the paper leaves out, counted too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from mhmoe_mm.moe.experts import Experts, GeluExperts, SwiGLUExperts
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.moe.routers import TopKRouter
from mhmoe_mm.moe.scorers import CosineScorer, LinearScorer, XMoEScorer


@dataclass(frozen=True)
class LayerShape:
    """The numbers that decide what a feed-forward layer costs.

    `num_experts=1` with `top_k=1` and no router is a dense net. `matrices` is 2 for
    `out(gelu(in(x)))` and 3 for a gated net; `embed_dim` is X-MoE's, 0 for a linear router.
    """

    dim: int
    hidden: int
    num_experts: int = 1
    top_k: int | float = 1
    num_heads: int = 1
    matrices: int = 2
    bias: bool = False
    sub_norm: bool = False
    head_layers: int = 0
    merge_layers: int = 0
    shared_hidden: int = 0
    routed: bool = True
    embed_dim: int = 0

    @property
    def width(self) -> int:
        """Features of a sub-token."""
        return self.dim // self.num_heads

    @property
    def router_parameters(self) -> int:
        if not self.routed:
            return 0
        if self.embed_dim:
            return (self.width + self.num_experts) * self.embed_dim
        return self.width * self.num_experts

    @property
    def projection_parameters(self) -> int:
        """Of the head and merge maps, which have biases always."""
        return (self.head_layers + self.merge_layers) * (self.dim**2 + self.dim)

    @property
    def expert_parameters(self) -> int:
        """Of all routed experts together."""
        one = self.matrices * self.width * self.hidden
        if self.bias:
            one += (self.matrices - 1) * self.hidden + self.width
        if self.sub_norm:
            one += 2 * self.hidden
        return one * self.num_experts

    @property
    def parameters(self) -> int:
        """All parameters of the layer; the shared expert's are counted without biases."""
        shared = self.matrices * self.dim * self.shared_hidden
        return self.router_parameters + self.projection_parameters + self.expert_parameters + shared

    @property
    def macs(self) -> int | float:
        """Multiply-adds per token of matrix products, the router's among them."""
        sub_tokens = self.num_heads
        experts = sub_tokens * self.top_k * self.matrices * self.width * self.hidden
        router = sub_tokens * self.router_parameters
        projections = (self.head_layers + self.merge_layers) * self.dim**2
        return experts + router + projections + self.matrices * self.dim * self.shared_hidden

    @property
    def active_macs(self) -> int | float:
        """As `macs` without the router, which the papers ignore."""
        return self.macs - self.num_heads * self.router_parameters

    def build(self) -> nn.Module:
        """A layer of this shape: MHMoE, or SparseMoE where there is one head and no map."""
        if not self.routed or self.shared_hidden:
            raise ValueError(
                "A dense net and a shared expert are the network's to build; this builds routed "
                "layers without a shared expert."
            )
        form: type[Experts] = SwiGLUExperts if self.matrices == 3 else GeluExperts
        experts = partial(form, hidden=self.hidden, bias=self.bias, sub_norm=self.sub_norm)
        scorer = partial(XMoEScorer, embed_dim=self.embed_dim) if self.embed_dim else LinearScorer
        router = partial(TopKRouter, top_k=int(self.top_k), scorer=scorer)
        if self.num_heads == 1 and not self.head_layers + self.merge_layers:
            return SparseMoE(self.dim, self.num_experts, router, experts)
        return MHMoE(
            self.dim,
            self.num_heads,
            self.num_experts,
            router,
            experts,
            head_layers=self.head_layers,
            merge_layers=self.merge_layers,
        )


def shape_of(layer: SparseMoE | MHMoE) -> LayerShape:
    """The shape of a sparse layer that exists. A shared expert is not read: add `shared_hidden`."""
    inner = layer.moe if isinstance(layer, MHMoE) else layer
    heads = layer.num_heads if isinstance(layer, MHMoE) else 1
    experts, router, scorer = inner.experts, inner.router, inner.router.scorer
    assert isinstance(experts, GeluExperts | SwiGLUExperts)
    embed_dim = scorer.embed.shape[1] if isinstance(scorer, CosineScorer | XMoEScorer) else 0
    num_experts, width, hidden = experts.w_in.shape
    return LayerShape(
        dim=width * heads,
        hidden=hidden,
        num_experts=num_experts,
        top_k=router.experts_per_token,
        num_heads=heads,
        matrices=3 if isinstance(experts, SwiGLUExperts) else 2,
        bias=experts.b_in is not None,
        sub_norm=experts.norm is not None,
        head_layers=_linears(layer.head_proj) if isinstance(layer, MHMoE) else 0,
        merge_layers=_linears(layer.merge_proj) if isinstance(layer, MHMoE) else 0,
        embed_dim=embed_dim,
    )


def _linears(maps: nn.Sequential) -> int:
    return sum(isinstance(part, nn.Linear) for part in maps)


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
        projections: head and merge maps together: 0, 1 or 2.

    Raises:
        ValueError: the maps alone cost more than the whole base layer, or the heads do not divide.
    """
    if base.dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide dim={base.dim}.")
    maps = projections * base.dim**2
    macs = base.top_k * base.matrices * base.dim * base.hidden - maps
    hidden = round(macs / (top_k * base.matrices * base.dim))
    if hidden < 1:
        raise ValueError(
            f"The head and merge maps of dim={base.dim} cost {maps:,} multiply-adds per token and "
            f"leave {macs:,.0f} for the experts: too few for top_k={top_k}."
        )
    width = base.dim // num_heads
    parameters = base.num_experts * base.matrices * base.dim * base.hidden - maps
    experts = parameters / (base.matrices * width * hidden)
    return replace(
        base,
        hidden=hidden,
        num_experts=max(round(experts / multiple_of), 1) * multiple_of,
        top_k=top_k,
        num_heads=num_heads,
        head_layers=min(projections, 1),
        merge_layers=projections // 2,
    )


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


PRESETS: dict[str, Callable[[int], LayerShape]] = {
    "dense": lambda dim: LayerShape(dim, 8 * dim // 3, matrices=3, routed=False),
    "smoe": lambda dim: LayerShape(dim, 8 * dim // 3, 8, matrices=3),
    "fine_grained": lambda dim: LayerShape(dim, 4 * dim // 3, 16, top_k=2, matrices=3),
    "mh_moe_h2": lambda dim: _paper2(dim, num_heads=2, num_experts=40),
    "mh_moe_h3": lambda dim: _paper2(dim, num_heads=3, num_experts=96),
    # The first paper writes an inner width of 4 * beta * dim with beta >= 63/64 and counts its
    # parameters with 4 times that; its code ran 15/16 of 16 * dim, at four times the compute.
    "paper1_text": lambda dim: _paper1(dim, hidden=4 * dim * 63 // 64),
    "paper1_code": lambda dim: _paper1(dim, hidden=15 * dim),
}
"""Layers of the papers by name, for any dim; the numbers printed there are those at dim 768."""
