"""Ways to decide which experts read a token. Each is a final class; all take a `Scorer` by factory.

    TopKRouter     the k most probable experts            GShard; the current released code
    GShardRouter   two experts, the second by a policy    torchscale; the first paper's runs
    SwitchRouter   the one most probable expert           Switch Transformer

Routers that balance without a loss are in `balanced_routers.py`.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mhmoe_mm.moe.capacity import Capacity, within_capacity
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


class TopKRouter(Router):
    """Every token goes to its k most probable experts.

    `renormalize` divides the k probabilities by their sum, before anything is dropped.
    `prioritized` lets the most certain tokens queue first (batch-prioritised routing,
    https://arxiv.org/abs/2106.05974). With a capacity, later tokens' first choices take room from
    earlier tokens' second ones, so only top-1 in row order stays causal.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        top_k: int = 2,
        renormalize: bool = False,
        capacity: Capacity | None = None,
        prioritized: bool = False,
        scorer: ScorerFactory = LinearScorer,
    ):
        super().__init__()
        check_top_k(top_k, num_experts, renormalize)
        self.num_experts, self.top_k, self.experts_per_token = num_experts, top_k, top_k
        self.renormalize, self.capacity, self.prioritized = renormalize, capacity, prioritized
        self.causal = capacity is None or (top_k == 1 and not prioritized)
        self.scorer = scorer(width, num_experts)

    def forward(
        self,
        token: Float[Tensor, "n width"],
        keep: Bool[Tensor, " n"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Plan, Load]:
        logits = self.scorer(token)
        prob = logits.softmax(dim=1)
        expert = best_experts(prob, self.top_k)
        gate = prob.gather(1, expert)
        if self.renormalize:
            gate = normalized(gate)
        first = expert[:, 0]
        wanted = nowhere_if_padding(expert, keep, self.num_experts)
        priority = prob.amax(dim=1) if self.prioritized else None
        kept = within_capacity(
            wanted, self.num_experts, self.capacity, keep, self.training, priority
        )
        plan = token_choice(wanted, gate, kept, self.num_experts)
        return plan, measure(plan, wanted, prob, logits, first, keep, kinds)


class GShardRouter(Router):
    """Two experts per token, the second one subject to a policy.

    `second` is `always`, `random` (kept if twice its gate exceeds a uniform draw) or `sampled`
    (drawn by Gumbel noise among the others, instead of the second best). The two gates are divided
    by their sum, before capacity drops any (`normalize_before`) or after. With XMoEScorer,
    `second="random"` and normalisation before, this is the gate of the first paper's runs.

    Source: https://arxiv.org/abs/2006.16668 and torchscale's top-2 gate.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        second: Literal["always", "random", "sampled"] = "random",
        normalize_before: bool = True,
        capacity: Capacity | None = None,
        prioritized: bool = False,
        scorer: ScorerFactory = LinearScorer,
    ):
        super().__init__()
        check_top_k(2, num_experts)
        self.num_experts, self.experts_per_token, self.second = num_experts, 2, second
        self.normalize_before, self.capacity = normalize_before, capacity
        self.prioritized = prioritized
        self.causal = capacity is None
        self.scorer = scorer(width, num_experts)

    def forward(
        self,
        token: Float[Tensor, "n width"],
        keep: Bool[Tensor, " n"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Plan, Load]:
        logits = self.scorer(token)
        prob = logits.softmax(dim=1)
        expert = self._choose(logits, prob)
        gate = prob.gather(1, expert)
        if self.normalize_before:
            gate = normalized(gate)
        first = expert[:, 0]
        wanted = nowhere_if_padding(expert, keep, self.num_experts)
        if self.second == "random":
            lucky = 2 * gate[:, 1] > torch.rand_like(gate[:, 1])
            wanted = torch.stack(
                [wanted[:, 0], torch.where(lucky, wanted[:, 1], self.num_experts)], dim=1
            )
        priority = prob.amax(dim=1) if self.prioritized else None
        kept = within_capacity(
            wanted, self.num_experts, self.capacity, keep, self.training, priority
        )
        if not self.normalize_before:
            gate = normalized(gate * kept)
        plan = token_choice(wanted, gate, kept, self.num_experts)
        return plan, measure(plan, wanted, prob, logits, first, keep, kinds)

    def _choose(self, logits: Tensor, prob: Tensor) -> Int[Tensor, "n 2"]:
        if self.second != "sampled":
            return best_experts(prob, 2)
        best = prob.argmax(dim=1, keepdim=True)
        gumbel = -torch.empty_like(logits).exponential_().log()
        others = (logits.detach() + gumbel).scatter(1, best, float("-inf"))
        return torch.cat([best, others.argmax(dim=1, keepdim=True)], dim=1)


class SwitchRouter(Router):
    """Every token goes to its one most probable expert, weighted with the raw probability.

    `jitter` multiplies the router's input by uniform noise in [1 - jitter, 1 + jitter] while
    training.
    Source: https://arxiv.org/abs/2101.03961.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        capacity: Capacity | None = None,
        jitter: float = 0.0,
        scorer: ScorerFactory = LinearScorer,
    ):
        super().__init__()
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter is in [0, 1), got {jitter}.")
        self.num_experts, self.experts_per_token = num_experts, 1
        self.capacity, self.jitter = capacity, jitter
        self.scorer = scorer(width, num_experts)

    def forward(
        self,
        token: Float[Tensor, "n width"],
        keep: Bool[Tensor, " n"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Plan, Load]:
        if self.training and self.jitter:
            token = token * torch.empty_like(token).uniform_(1 - self.jitter, 1 + self.jitter)
        logits = self.scorer(token)
        prob = logits.softmax(dim=1)
        gate, expert = prob.max(dim=1, keepdim=True)
        wanted = nowhere_if_padding(expert, keep, self.num_experts)
        kept = within_capacity(wanted, self.num_experts, self.capacity, keep, self.training)
        plan = token_choice(wanted, gate, kept, self.num_experts)
        return plan, measure(plan, wanted, prob, logits, expert[:, 0], keep, kinds)
