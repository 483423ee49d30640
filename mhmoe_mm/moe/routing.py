"""What a router says: a `Plan` (who goes where) and a `Load` (what it cost).

Both are values. Nothing is kept on modules, so activation recomputation, compilation and several forwards per step
see the same numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Kinds(NamedTuple):
    """What each token is, so that loads can be told apart: image or text, or one language of many."""

    index: Int[Tensor, "*tokens"]
    """For each token the position of its kind in `names`."""
    names: tuple[str, ...]


class Plan(NamedTuple):
    """A flat list of assignments: token `token[i]` goes to expert `expert[i]`, whose answer counts `weight[i]`.

    An assignment that is not carried out (padding, or beyond an expert's capacity) has `expert == num_experts` and
    weight 0, so the list's length never depends on the data.
    """

    token: Int[Tensor, " assign"]
    expert: Int[Tensor, " assign"]
    weight: Float[Tensor, " assign"]
    per_token: int
    """k, if the list holds exactly k assignments of token 0, then k of token 1, and so on; 0 if it has no such order."""


class Load(NamedTuple):
    """What one layer routed: sums over tokens, so that loads of several forwards, steps or ranks simply add up."""

    count: Float[Tensor, "kinds experts"]
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
        """Load-balancing loss `E * sum_e mean(prob_e) * mean(first_e)`: 1 when uniform, E when one expert takes all.

        Source: https://arxiv.org/abs/2404.15045, equation 10, with `t_p` read as a fraction, as the released code does.
        """
        token = self.token.sum().clamp(min=1)
        return len(self.first) * torch.dot(self.prob / token, self.first / token)

    @property
    def z_loss(self) -> Float[Tensor, ""]:
        """Mean squared log-partition function of the router's logits (https://arxiv.org/abs/2202.08906)."""
        return self.square_logsumexp / self.token.sum().clamp(min=1)

    def detach(self) -> "Load":
        """The same numbers without their history."""
        return Load(*(v.detach() if isinstance(v, Tensor) else v for v in self))


def total_load(loads: Iterable[Load]) -> Load:
    """The load of several forwards of one layer; all must tell the same kinds apart."""
    first, *rest = loads
    for load in rest:
        if load.names != first.names:
            raise ValueError(f"Loads of kinds {first.names} and {load.names} do not add up.")
    return Load(*(sum(v) if isinstance(v[0], Tensor) else v[0] for v in zip(first, *rest, strict=True)))


class Router(nn.Module, ABC):
    """Decides for every token which experts read it. Abstract; each way of deciding is a final class."""

    causal: ClassVar[bool] = True
    """Whether a token's experts depend on that token and earlier ones only (a causal decoder asks)."""

    num_experts: int

    @abstractmethod
    def forward(
        self, token: Float[Tensor, "n width"], keep: Bool[Tensor, " n"] | None, kinds: Kinds | None
    ) -> tuple[Plan, Load]:
        """Assign the tokens; those with `keep` false are padding: never assigned, never counted."""

    def step(self, load: Load) -> None:  # noqa: B027 - most routers have nothing to do between steps
        """Called once per optimizer step with the load of the whole step, summed over ranks."""
