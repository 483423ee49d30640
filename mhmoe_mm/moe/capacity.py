"""How many tokens one expert takes, and who comes first when there are too many."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Capacity:
    """A limit on the tokens of one expert; without one (None instead of this) nothing is ever
    dropped.

    In training an expert takes `factor * k * ceil(tokens / experts)` assignments. In evaluation it
    takes `ceil(eval_share * tokens)`, or as many as in training if `eval_share` is None. Padding is
    not among the tokens.

    Source: the released code of https://arxiv.org/abs/2411.16205 (factor 1;
    `--moe-eval-capacity-token-fraction`).
    """

    factor: float = 1.0
    eval_share: float | None = None

    def __post_init__(self) -> None:
        if self.factor <= 0 or (self.eval_share is not None and self.eval_share <= 0):
            raise ValueError(
                f"A capacity is positive, got factor={self.factor}, eval_share={self.eval_share}; "
                "leave the capacity out to route without dropping."
            )

    def rows(
        self, tokens: int | Int[Tensor, ""], top_k: int, num_experts: int, training: bool
    ) -> int | Int[Tensor, ""]:
        """Assignments that one expert takes.

        A tensor where only the device knows how many tokens are real; the same number either way.
        """
        if isinstance(tokens, int):
            if self.eval_share is not None and not training:
                return math.ceil(self.eval_share * tokens)
            return int(self.factor * top_k * -(-tokens // num_experts))
        if self.eval_share is not None and not training:
            return torch.ceil(self.eval_share * tokens.double()).long()
        even = torch.div(tokens + num_experts - 1, num_experts, rounding_mode="floor")
        return torch.floor(self.factor * top_k * even.double()).long()


def queue_position(
    expert: Int[Tensor, "n k"], num_experts: int, priority: Float[Tensor, " n"] | None = None
) -> Int[Tensor, "n k"]:
    """Place of every assignment in its expert's queue, from 0.

    All first choices queue before all second ones; within a choice tokens queue in row order, or by
    falling `priority`. Assignments to `num_experts` (nowhere) have a queue of their own.
    """
    n, k = expert.shape
    rank = torch.arange(n, device=expert.device)
    if priority is not None:
        rank = torch.argsort(priority, descending=True, stable=True)
    queued = expert[rank].T.reshape(-1)
    sorted_expert, order = torch.sort(queued, stable=True)
    start = torch.searchsorted(sorted_expert, torch.arange(num_experts + 1, device=expert.device))
    place = torch.arange(n * k, device=expert.device) - start[sorted_expert]
    position = torch.empty_like(place).scatter_(0, order, place).view(k, n).T
    return torch.empty_like(position).index_copy_(0, rank, position)


def within_capacity(
    expert: Int[Tensor, "n k"],
    num_experts: int,
    capacity: Capacity | None,
    keep: Bool[Tensor, " n"] | None,
    training: bool,
    priority: Float[Tensor, " n"] | None = None,
) -> Bool[Tensor, "n k"]:
    """Which assignments are carried out; those to `num_experts` (nowhere) never are."""
    somewhere = expert < num_experts
    if capacity is None:
        return somewhere
    n, k = expert.shape
    rows = capacity.rows(n if keep is None else keep.sum(), k, num_experts, training)
    return somewhere & (queue_position(expert, num_experts, priority) < rows)


def even_share(tokens: int, factor: int | float, num_experts: int) -> int:
    """Rows per expert when `factor` experts read a token on average: `ceil(tokens * factor /
    num_experts)`.
    """
    return math.ceil(tokens * factor / num_experts)
