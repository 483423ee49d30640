"""What expert loads say: how many experts work, how evenly, and how evenly chance would have done
it.

Definitions (https://arxiv.org/abs/2404.15045, figures 1 and 5): the frequency of an expert is
`r = count / N`, where `N` are the tokens of that kind that the layer routed (sub-tokens in a
multi-head layer). An expert is active when `r > tau`. The paper does not give tau; here it is half
of an even share, `0.5 * sum(r) / E`, unless a run sets it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mhmoe_mm.moe.routing import Load

EVEN_SHARE = 0.5
"""Without a tau of one's own, the part of an even share above which an expert counts as active."""
ALL = "all"
"""The name under which the kinds of a layer are added up, where it saw more than one."""

_RANDOM_COUNTS = 4096
"""Expert counts drawn for a random baseline: 512 layers of 8 experts, or 16 of 256."""


class Usage(NamedTuple):
    """How a layer's experts are used; for the random baseline, means over the drawn layers."""

    activation: float
    """Share of the experts that are active."""
    sweep: tuple[float, ...]
    """The same share at each tau of the sweep."""
    entropy_share: float
    """Entropy of the distribution of assignments over experts, as a share of `log E`."""
    dead: float
    """Experts that got nothing."""
    max_over_mean: float
    """The fullest expert's load, in even shares."""


class KindStats(NamedTuple):
    """One kind of token in one layer."""

    kind: str
    token: int
    counts: tuple[int, ...]
    dropped_share: float
    """Refused assignments as a share of all that were asked for."""
    tau: float
    usage: Usage
    random: Usage
    """What as many assignments give when each goes to a uniformly random expert."""
    random_counts: tuple[int, ...]
    """One such draw."""


class LayerStats(NamedTuple):
    """One layer: its kinds that had tokens, and what the router says of all of them together."""

    layer: str
    kinds: tuple[KindStats, ...]
    """Ends with `ALL` if there are several."""
    balance: float
    z_loss: float
    router_entropy_share: float
    """Mean entropy of a token's distribution over experts, as a share of `log E`."""

    @property
    def overall(self) -> KindStats:
        """All kinds together. An expert that only texts choose is alive."""
        return self.kinds[-1]


def layer_stats(
    layer: str, load: Load, tau: float | None, taus: Sequence[float]
) -> LayerStats | None:
    """Statistics of a load that lies on the CPU; None if the layer routed no token."""
    reached = load.token.nonzero().flatten().tolist()
    if not reached:
        return None
    kinds = [
        kind_stats(load.names[i], load.count[i], load.token[i], load.dropped[i], tau, taus)
        for i in reached
    ]
    if len(kinds) > 1:
        token, dropped = load.token.sum(), load.dropped.sum()
        kinds.append(kind_stats(ALL, load.count.sum(dim=0), token, dropped, tau, taus))
    entropy = (load.entropy / load.token.sum()).item()
    share = entropy / math.log(len(load.first)) if len(load.first) > 1 else 1.0
    return LayerStats(layer, tuple(kinds), load.balance.item(), load.z_loss.item(), share)


def kind_stats(
    kind: str,
    count: Tensor,
    token: Tensor,
    dropped: Tensor,
    tau: float | None,
    taus: Sequence[float],
) -> KindStats:
    """Statistics of one kind's counts (experts), with those of random routing beside them."""
    num_token, assigned, refused = int(token), int(count.sum()), int(dropped)
    if tau is None:
        tau = EVEN_SHARE * assigned / (num_token * len(count))
    every_tau = (tau, *taus)
    drawn = _random_usage(assigned, num_token, len(count), every_tau)
    return KindStats(
        kind=kind,
        token=num_token,
        counts=tuple(int(c) for c in count.tolist()),
        dropped_share=refused / max(assigned + refused, 1),
        tau=tau,
        usage=usage(count[None], num_token, every_tau),
        random=drawn,
        random_counts=tuple(random_counts(assigned, len(count), 1)[0].tolist()),
    )


def usage(count: Tensor, num_token: int, taus: Sequence[float]) -> Usage:
    """Mean usage of some layers with the counts `count` (layers experts); `taus[0]` is the tau."""
    count = count.double()
    experts = count.shape[1]
    total = count.sum(dim=1, keepdim=True).clamp(min=1)
    # Counts are whole: the margin only keeps rounding from deciding when one is exactly at tau.
    sweep = [(count > tau * num_token + 1e-6).double().mean().item() for tau in taus]
    entropy = -torch.xlogy(count / total, count / total).sum(dim=1).mean().item()
    return Usage(
        activation=sweep[0],
        sweep=tuple(sweep[1:]),
        entropy_share=entropy / math.log(experts) if experts > 1 else 1.0,
        dead=(count == 0).double().sum(dim=1).mean().item(),
        max_over_mean=(count.amax(dim=1) * experts / total.squeeze(1)).mean().item(),
    )


def random_counts(assigned: int, experts: int, draws: int) -> Tensor:
    """Loads of random routing (draws experts): each assignment to an independent, uniform expert.

    The multinomial is drawn expert by expert, each a binomial of what is left. Seeded: the same
    question has the same answer in every run and on every rank.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.full((draws,), float(assigned), dtype=torch.float64)
    columns = []
    for expert in range(experts - 1):
        probability = torch.full_like(left, 1 / (experts - expert))
        columns.append(torch.binomial(left, probability, generator=generator))
        left = left - columns[-1]
    return torch.stack([*columns, left], dim=1).long()


@lru_cache(maxsize=1024)
def _random_usage(assigned: int, num_token: int, experts: int, taus: tuple[float, ...]) -> Usage:
    draws = max(_RANDOM_COUNTS // experts, 16)
    return usage(random_counts(assigned, experts, draws), num_token, taus)
