"""What a router says: a `Plan` (who goes where) and a `Load` (what it cost).

Both are values. Nothing is kept on modules, so activation recomputation, compilation and several
forwards per step see the same numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mhmoe_mm.moe.scorers import Scorer

_FEW_EXPERTS = 64
"""Up to so many, two passes over their scores beat sorting them."""


class Kinds(NamedTuple):
    """What each token is (image or text, or one language of many), to tell loads apart."""

    index: Int[Tensor, "*tokens"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """For each token the position of its kind in `names`."""
    names: tuple[str, ...]


class Plan(NamedTuple):
    """A flat list of assignments: token `token[i]` goes to expert `expert[i]` with `weight[i]`.

    An assignment that is not carried out (padding, or beyond an expert's capacity) has
    `expert == num_experts` and weight 0, so the list's length never depends on the data.
    """

    token: Int[Tensor, " assign"]
    expert: Int[Tensor, " assign"]
    weight: Float[Tensor, " assign"]
    per_token: int
    """k, if the list holds k assignments of token 0, then k of token 1, and so on; otherwise 0."""


class Load(NamedTuple):
    """What one layer routed: sums over tokens, so that loads of forwards, steps or ranks add up."""

    count: Float[Tensor, "kinds experts"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Assignments carried out."""
    dropped: Float[Tensor, " kinds"]
    """Assignments refused because an expert was full."""
    token: Float[Tensor, " kinds"]
    """Tokens (sub-tokens in a multi-head layer) that were routed; padding is not among them."""
    first: Float[Tensor, " experts"]
    """Tokens whose first choice was this expert, before any capacity."""
    prob: Float[Tensor, " experts"]
    """Sum of the router's probabilities; carries the gradient of the balance loss."""
    entropy: Float[Tensor, ""]
    """Sum of the entropies of the router's distributions, in nats."""
    square_logsumexp: Float[Tensor, ""]
    """Sum of squared log-partition functions; carries the gradient of the z-loss."""
    names: tuple[str, ...]
    """The kinds, by name: one row of `count` each."""

    @property
    def balance(self) -> Float[Tensor, ""]:
        """Load-balancing loss `E * sum_e mean(prob_e) * mean(first_e)`: 1 when uniform, E at worst.

        Source: https://arxiv.org/abs/2404.15045, equation 10, with `t_p` read as a fraction, as the
        released code does.
        """
        token = self.token.sum().clamp(min=1)
        return len(self.first) * (self.prob / token * (self.first / token)).sum()

    @property
    def z_loss(self) -> Float[Tensor, ""]:
        """Mean squared log-partition of the router's logits (https://arxiv.org/abs/2202.08906)."""
        return self.square_logsumexp / self.token.sum().clamp(min=1)

    def detach(self) -> "Load":
        """The same numbers without their history."""
        return self._replace(**{name: getattr(self, name).detach() for name in Load._fields[:-1]})


def total_load(loads: Iterable[Load]) -> Load:
    """The load of several forwards of one layer; all must tell the same kinds apart."""
    total, *rest = loads
    for load in rest:
        if load.names != total.names:
            raise ValueError(f"Loads of kinds {total.names} and {load.names} do not add up.")
        sums = {name: getattr(total, name) + getattr(load, name) for name in Load._fields[:-1]}
        total = Load(**sums, names=total.names)
    return total


class Router(nn.Module, ABC):
    """Decides for every token which experts read it. Abstract."""

    num_experts: int
    experts_per_token: int | float
    """How many experts read a token, on average."""
    scorer: Scorer
    causal: bool = True
    """Whether a token's experts depend on it and earlier tokens only; a causal decoder asks."""

    @abstractmethod
    def forward(
        self, token: Float[Tensor, "n width"], keep: Bool[Tensor, " n"] | None, kinds: Kinds | None
    ) -> tuple[Plan, Load]:
        """Assign the tokens; those with `keep` false are padding: never assigned, never counted."""

    def step(self, load: Load) -> None:
        """Called once per optimizer step with the load of the whole step, summed over ranks."""
        self.scorer.project()


def check_top_k(top_k: int, num_experts: int, renormalize: bool = False) -> None:
    """Refuse a number of experts per token that cannot be, or that could not be learned."""
    if not 1 <= top_k <= num_experts:
        raise ValueError(
            f"top_k={top_k} experts per token cannot be chosen among num_experts={num_experts}; "
            "it is between 1 and the number of experts."
        )
    if renormalize and top_k == 1:
        raise ValueError(
            "One renormalised weight is always 1 and teaches the router nothing: use top_k >= 2 "
            "or renormalize=False."
        )


def best_experts(score: Float[Tensor, "n experts"], k: int) -> Int[Tensor, "n k"]:
    """The k experts of the highest scores of every row, best first.

    On a CPU one or two experts of not many are found in passes over the row, in half the time.
    """
    if score.device.type != "cpu" or k > 2 or score.shape[1] > _FEW_EXPERTS:
        return score.topk(k, dim=1).indices
    best = score.argmax(dim=1, keepdim=True)
    if k == 1:
        return best
    others = score.detach().scatter(1, best, -torch.inf)
    return torch.cat([best, others.argmax(dim=1, keepdim=True)], dim=1)


def normalized(gate: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """The same weights divided by their sum."""
    total = gate.sum(dim=1, keepdim=True)
    return gate / total.clamp(min=torch.finfo(gate.dtype).eps)


def nowhere_if_padding(
    expert: Int[Tensor, "n k"], keep: Bool[Tensor, " n"] | None, num_experts: int
) -> Int[Tensor, "n k"]:
    """The same choices, with those of padding tokens sent to `num_experts`: nowhere."""
    return expert if keep is None else torch.where(keep[:, None], expert, num_experts)


def token_choice(
    expert: Int[Tensor, "n k"],
    gate: Float[Tensor, "n k"],
    kept: Bool[Tensor, "n k"],
    num_experts: int,
) -> Plan:
    """The plan in which token n goes to the k experts of row n, as far as `kept` says so."""
    n, k = expert.shape
    return Plan(
        token=torch.arange(n, device=expert.device).repeat_interleave(k),
        expert=torch.where(kept, expert, num_experts).flatten(),
        weight=torch.where(kept, gate, 0.0).flatten(),
        per_token=k,
    )


def measure(
    plan: Plan,
    wanted: Int[Tensor, "..."],
    prob: Float[Tensor, "n experts"],
    logits: Float[Tensor, "n experts"],
    first: Int[Tensor, " n"],
    keep: Bool[Tensor, " n"] | None,
    kinds: Kinds | None,
) -> Load:
    """The load of a plan; `wanted` are the experts before any capacity, `first` each token's first
    choice.

    Nothing here waits for the device: all sizes are known beforehand.
    """
    n, num_experts = prob.shape
    names = ("all",) if kinds is None else kinds.names
    real = prob.new_ones(n) if keep is None else keep.to(prob.dtype)
    kind = first.new_zeros(n) if kinds is None else kinds.index.to(first.dtype)
    with torch.no_grad():
        carried = _tally(kind[plan.token], plan.expert, len(names), num_experts)
        asked = _tally(kind[plan.token], wanted.flatten(), len(names), num_experts)
        token = real.new_zeros(len(names)).index_add_(0, kind, real)
        of_first = real.new_zeros(num_experts).index_add_(0, first, real)
    log_partition = logits.logsumexp(dim=1)
    return Load(
        count=carried,
        dropped=(asked - carried).sum(dim=1),
        token=token,
        first=of_first,
        prob=(prob * real[:, None]).sum(dim=0),  # a product would lose digits under autocast
        entropy=(_entropy(prob.detach()) * real).sum(),
        square_logsumexp=(log_partition.square() * real).sum(),
        names=names,
    )


def _entropy(prob: Float[Tensor, "n experts"]) -> Float[Tensor, " n"]:
    """In nats; `torch.special.entr` says the same in ten times the time."""
    log = prob.clamp(min=torch.finfo(prob.dtype).tiny).log()
    return -torch.linalg.vecdot(prob, log)


def _tally(
    kind: Int[Tensor, " assign"], expert: Int[Tensor, " assign"], num_kinds: int, num_experts: int
) -> Float[Tensor, "kinds experts"]:
    """How often each (kind, expert) occurs, leaving out `num_experts`: nowhere."""
    cell = kind * (num_experts + 1) + expert
    count = torch.zeros(num_kinds * (num_experts + 1), device=kind.device)
    count.scatter_add_(0, cell, torch.ones_like(cell, dtype=count.dtype))
    return count.view(num_kinds, num_experts + 1)[:, :num_experts]
