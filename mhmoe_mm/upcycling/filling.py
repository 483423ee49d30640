"""Hidden units into stacked experts, and rows into routers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.moe.balanced_routers import BiasBalancedRouter
from mhmoe_mm.moe.experts import Experts, GeluExperts, SwiGLUExperts
from mhmoe_mm.moe.routers import GShardRouter, SwitchRouter, TopKRouter
from mhmoe_mm.moe.routing import Router
from mhmoe_mm.moe.scorers import LinearScorer


@dataclass(frozen=True)
class Start:
    """How experts and routers start.

    Args:
        noise: on every expert's matrices, as a share of their standard deviation; 0: copies are
            exact, and only the router tells them apart.
        router_std: standard deviation of a linear router's weights; None: as large as leaves the
            function of the layer as it is.
        seed: of both.
    """

    noise: float = 0.0
    router_std: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.noise < 0 or (self.router_std is not None and self.router_std < 0):
            raise ValueError(
                f"noise and router_std are 0 or more, got {self.noise} and {self.router_std}."
            )


@dataclass(frozen=True)
class Units:
    """Some hidden units, as one expert computes them; matrices are [in out], as experts have them.

    There may be fewer than the expert has: the rest stays silent.
    """

    w_in: Float[Tensor, "width units"]
    b_in: Float[Tensor, " units"]
    w_out: Float[Tensor, "units width"]
    w_gate: Float[Tensor, "width units"] | None = None
    b_gate: Float[Tensor, " units"] | None = None
    norm: tuple[Tensor, Tensor] | None = None
    """Scale and shift of the norm before the last product."""


def hidden_of(experts: Experts, gated: bool, where: str) -> int:
    """Hidden units of an expert; ValueError where it is not of the form of the dense net."""
    if not isinstance(experts, SwiGLUExperts if gated else GeluExperts):
        raise ValueError(
            f"{where} has {type(experts).__name__}, but the dense net is "
            f"{'gated' if gated else 'not gated'}: choose "
            f"{'SwiGLUExperts' if gated else 'GeluExperts'}."
        )
    return experts.w_in.shape[2]


def gates_of(router: Router, where: str) -> tuple[int, bool]:
    """Experts per token, and whether their weights add up to 1.

    Raises:
        ValueError: the router leaves that to chance, or tokens without experts.
    """
    if isinstance(router, SwitchRouter):
        return 1, False
    if isinstance(router, TopKRouter):
        return router.top_k, router.renormalize
    if isinstance(router, GShardRouter) and router.second == "always":
        return 2, True
    if isinstance(router, BiasBalancedRouter) and router.renormalize:
        return router.top_k, True
    raise ValueError(
        f"{where}: how much experts say with {type(router).__name__} as it is set depends on the "
        "batch or on chance, so no start of it keeps a function: use TopKRouter, SwitchRouter, "
        "GShardRouter with second='always' or BiasBalancedRouter with renormalize=True."
    )


@torch.no_grad()
def fill_router(router: Router, row: Float[Tensor, "experts width"], where: str) -> None:
    """Rows of a linear router, one for each expert."""
    if not isinstance(router.scorer, LinearScorer):
        raise ValueError(
            f"{where}: the rows of {type(router.scorer).__name__} cannot be chosen freely, which "
            "this layer needs: use LinearScorer."
        )
    router.scorer.weight.copy_(row)


@torch.no_grad()
def fill_experts(
    experts: Experts,
    parts: Sequence[Units],
    b_out: Float[Tensor, " width"],
    start: Start,
    draw: torch.Generator,
    where: str,
) -> None:
    """Give every expert its units, in place.

    Args:
        experts: of the form of the units.
        parts: for every expert.
        b_out: added to every expert's answer.
        start: says how much noise.
        draw: where noise comes from.
        where: the layer, for errors.

    Raises:
        ValueError: there are biases or a norm that experts have no place for, or the reverse.
    """
    assert isinstance(experts, GeluExperts | SwiGLUExperts)
    has_norm = experts.norm is not None
    if has_norm != (parts[0].norm is not None):
        raise ValueError(
            f"{where}: the dense net has {'no' if has_norm else 'a'} norm over its hidden units: "
            f"set sub_norm={not has_norm} of the experts."
        )
    for number, units in enumerate(parts):
        given = {"w_in": units.w_in, "b_in": units.b_in, "w_out": units.w_out, "b_out": b_out}
        if isinstance(experts, SwiGLUExperts):
            given |= {"w_gate": units.w_gate, "b_gate": units.b_gate}
        for name, value in given.items():
            place = getattr(experts, name)
            if value is None:
                value = torch.zeros(())
            if place is None:
                if value.any():
                    raise ValueError(
                        f"{where}: the dense net has biases, the experts none: set bias=True."
                    )
                continue
            if name.startswith("w_") and start.noise:
                noise = torch.randn(value.shape, generator=draw)
                value = value + start.noise * value.std() * noise
            place[number].zero_()
            place[number][tuple(slice(size) for size in value.shape)] = value
        if experts.norm is not None and units.norm is not None:
            experts.norm.weight[number], experts.norm.bias[number] = units.norm
