"""What a network costs, counted on its modules: parameters and multiply-adds per token.

`mhmoe_mm.moe.budget` counts a layer from its numbers; here a whole network is counted as it was
built, so that the one can be held against the other.
"""

from typing import NamedTuple

from torch import nn

from mhmoe_mm.models.branches import MultiwayFFN
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE


class NetCost(NamedTuple):
    """The costs of a network. Multiply-adds are per token and of matrix products alone."""

    parameters: int
    """All, embeddings included."""
    active_parameters: int
    """Without the experts that a token does not reach."""
    feed_forward_parameters: int
    """Of the feed-forward nets, dense and sparse, routers included."""
    macs: float
    """Of the feed-forward nets without routers, as the papers count."""
    router_macs: float
    """Of the routers."""
    sparse_layers: int
    """Feed-forward places that hold experts."""


class FeedForwardCost(NamedTuple):
    """The costs of one feed-forward net, dense or sparse."""

    macs: float = 0.0
    """Without the router's."""
    router_macs: float = 0.0
    idle: float = 0.0
    """Parameters of the experts that a token, on average, does not reach."""
    sparse: bool = False


def net_cost(net: nn.Module) -> NetCost:
    """Count a network; its feed-forward nets are the modules named `ffn`.

    Where image and text have feed-forward nets of their own, a token goes through one of them: the
    multiply-adds are those of the costliest.
    """
    places = [part for name, part in net.named_modules() if name.rpartition(".")[2] == "ffn"]
    parts = [feed_forward_cost(place) for place in places]
    total = num_parameters(net)
    return NetCost(
        parameters=total,
        active_parameters=round(total - sum(part.idle for part in parts)),
        feed_forward_parameters=sum(num_parameters(place) for place in places),
        macs=sum(part.macs for part in parts),
        router_macs=sum(part.router_macs for part in parts),
        sparse_layers=sum(part.sparse for part in parts),
    )


def feed_forward_cost(module: nn.Module) -> FeedForwardCost:
    """Count a feed-forward net, or the costliest of its branches."""
    if isinstance(module, MultiwayFFN):
        branches = [feed_forward_cost(branch) for branch in module.values()]
        largest = max(branches, key=lambda part: part.macs)
        return largest._replace(idle=sum(part.idle for part in branches))
    if isinstance(module, MHMoE):
        inner = _sparse(module.moe, module.num_heads)
        own = (
            matrix_entries(module.head_proj)
            + matrix_entries(module.merge_proj)
            + matrix_entries(module.shared)
        )
        return inner._replace(macs=inner.macs + own)
    if isinstance(module, SparseMoE):
        return _sparse(module, sub_tokens=1)
    return FeedForwardCost(macs=matrix_entries(module))


def _sparse(moe: SparseMoE, sub_tokens: int) -> FeedForwardCost:
    """A token is `sub_tokens` pieces, each of which goes to some experts."""
    visits = sub_tokens * moe.router.experts_per_token
    stacked = [p for p in moe.experts.parameters() if p.ndim == 3]
    num_experts = moe.experts.num_experts
    reached = min(visits / num_experts, 1.0)
    return FeedForwardCost(
        macs=visits * sum(p.numel() for p in stacked) / num_experts + matrix_entries(moe.shared),
        router_macs=sub_tokens * matrix_entries(moe.router),
        idle=(1 - reached) * num_parameters(moe.experts),
        sparse=True,
    )


def matrix_entries(module: nn.Module | None) -> int:
    """Multiply-adds of a vector with every matrix of a module once; 0 for None."""
    return sum(p.numel() for p in module.parameters() if p.ndim == 2) if module else 0


def num_parameters(module: nn.Module) -> int:
    """All parameters of a module."""
    return sum(p.numel() for p in module.parameters())
