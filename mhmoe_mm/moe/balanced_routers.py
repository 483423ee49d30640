"""Routers that balance the experts without a loss.

    ExpertChoiceRouter   experts choose tokens              not causal
    BiasBalancedRouter   top-k of score + bias              the bias follows the load

As in `routers.py` each is a final class and takes a `Scorer` by factory.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mhmoe_mm.moe.capacity import even_share
from mhmoe_mm.moe.routing import (
    Kinds,
    Load,
    Plan,
    Router,
    best_experts,
    check_top_k,
    measure,
    normalized,
    nowhere_if_padding,
    token_choice,
)
from mhmoe_mm.moe.scorers import LinearScorer, ScorerFactory


class ExpertChoiceRouter(Router):
    """Every expert takes the tokens that suit it best, the same number for each; perfectly
    balanced, not causal.

    `factor` is how many experts read a token on average. Because an expert compares tokens with
    later ones, a causal decoder must refuse it. Source: https://arxiv.org/abs/2202.09368.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        factor: float = 2.0,
        scorer: ScorerFactory = LinearScorer,
    ):
        super().__init__()
        if not 0 < factor <= num_experts:
            raise ValueError(
                f"factor={factor} experts per token on average is not in (0, {num_experts}], the "
                "number of experts."
            )
        self.num_experts, self.experts_per_token = num_experts, factor
        self.causal = False
        self.scorer = scorer(width, num_experts)

    def forward(
        self,
        token: Float[Tensor, "n width"],
        keep: Bool[Tensor, " n"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Plan, Load]:
        logits = self.scorer(token)
        prob = logits.softmax(dim=1)
        wish = prob if keep is None else prob.masked_fill(~keep[:, None], -1.0)
        rows = even_share(len(token), self.experts_per_token, self.num_experts)
        gate, chosen = wish.T.topk(rows, dim=1)
        expert = torch.arange(self.num_experts, device=token.device)[:, None].expand_as(chosen)
        if keep is not None:  # the share of the real tokens only, and never a padded one
            share = torch.ceil(keep.sum().double() * self.experts_per_token / self.num_experts)
            room = (torch.arange(rows, device=token.device) < share) & (gate >= 0)
            expert = torch.where(room, expert, self.num_experts)
            gate = torch.where(room, gate, 0.0)
        plan = Plan(chosen.flatten(), expert.flatten(), gate.flatten(), per_token=0)
        # Balanced by construction: the probabilities are for looking at, a balance loss would have
        # no say.
        first = prob.argmax(dim=1)
        return plan, measure(plan, expert, prob.detach(), logits, first, keep, kinds)


class BiasBalancedRouter(Router):
    """Top-k of score plus a bias that rises for idle experts and falls for busy ones; needs no
    balance loss.

    The bias decides who is chosen, never how much an answer counts: weights are the chosen experts'
    own scores, divided by their sum if `renormalize`. `step` moves every bias by `rate` towards
    balance, from the load of the whole step; the bias is a buffer and travels with the weights.

    Source: https://arxiv.org/abs/2408.15664.
    """

    bias: Tensor

    def __init__(
        self,
        width: int,
        num_experts: int,
        top_k: int = 2,
        rate: float = 1e-3,
        gate: Literal["sigmoid", "softmax"] = "sigmoid",
        renormalize: bool = True,
        scorer: ScorerFactory = LinearScorer,
    ):
        super().__init__()
        check_top_k(top_k, num_experts, renormalize)
        self.num_experts, self.top_k, self.experts_per_token = num_experts, top_k, top_k
        self.rate = rate
        self.gate, self.renormalize = gate, renormalize
        self.scorer = scorer(width, num_experts)
        self.register_buffer("bias", torch.zeros(num_experts))

    def forward(
        self,
        token: Float[Tensor, "n width"],
        keep: Bool[Tensor, " n"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Plan, Load]:
        logits = self.scorer(token)
        score = logits.sigmoid() if self.gate == "sigmoid" else logits.softmax(dim=1)
        expert = best_experts(score + self.bias.float(), self.top_k)
        gate = score.gather(1, expert)
        if self.renormalize:
            gate = normalized(gate)
        wanted = nowhere_if_padding(expert, keep, self.num_experts)
        plan = token_choice(wanted, gate, wanted < self.num_experts, self.num_experts)
        prob = normalized(score)
        return plan, measure(plan, wanted, prob, logits, expert[:, 0], keep, kinds)

    @torch.no_grad()
    def step(self, load: Load) -> None:
        count = load.count.sum(dim=0)
        self.bias.add_(self.rate * torch.sign(count.mean() - count).to(self.bias.dtype))
        super().step(load)
