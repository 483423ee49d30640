"""The numbers that decide what a feed-forward layer costs, and a layer made from them."""

from collections.abc import Callable
from dataclasses import dataclass
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
        """Of all routed experts together, or of the dense net."""
        return self.num_experts * self._net_parameters(self.width, self.hidden)

    @property
    def shared_parameters(self) -> int:
        """Of the shared expert, which reads whole tokens."""
        return self._net_parameters(self.dim, self.shared_hidden) if self.shared_hidden else 0

    @property
    def parameters(self) -> int:
        """All parameters of the layer."""
        routed = self.router_parameters + self.projection_parameters + self.expert_parameters
        return routed + self.shared_parameters

    def _net_parameters(self, width: int, hidden: int) -> int:
        one = self.matrices * width * hidden
        if self.bias:
            one += (self.matrices - 1) * hidden + width
        if self.sub_norm:
            one += 2 * hidden
        return one

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

    def build(self, dense: Callable[[int, int], nn.Module] | None = None) -> nn.Module:
        """A layer of this shape: MHMoE, SparseMoE where there is one head and no map, or dense.

        Args:
            dense: makes a feed-forward net from (dim, hidden), of as many matrices, such as
                `SwiGLUFFN`; for a dense shape and for a shared expert.
        """
        if dense is None:
            if not self.routed or self.shared_hidden:
                raise ValueError(
                    "A dense net or a shared expert is built by `dense`, such as "
                    "`shape.build(SwiGLUFFN)`."
                )
            shared = None
        elif not self.routed:
            return dense(self.dim, self.hidden)
        else:
            make, hidden = dense, self.shared_hidden
            shared = (lambda width: make(width, hidden)) if hidden else None
        form: type[Experts] = SwiGLUExperts if self.matrices == 3 else GeluExperts
        experts = partial(form, hidden=self.hidden, bias=self.bias, sub_norm=self.sub_norm)
        scorer = partial(XMoEScorer, embed_dim=self.embed_dim) if self.embed_dim else LinearScorer
        router = partial(TopKRouter, top_k=int(self.top_k), scorer=scorer)
        if self.num_heads == 1 and not self.head_layers + self.merge_layers:
            return SparseMoE(self.dim, self.num_experts, router, experts, shared)
        return MHMoE(
            self.dim,
            self.num_heads,
            self.num_experts,
            router,
            experts,
            shared,
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
