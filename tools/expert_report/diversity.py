"""Assign-diversity: how many different experts read the sub-tokens of a token.

Source: https://arxiv.org/abs/2404.15045, figures 7, 8 and 10.
"""

import numpy as np

from mhmoe_mm.callbacks.routing_rows import different
from mhmoe_mm.callbacks.routing_tokens import RoutingChunk
from mhmoe_mm.moe.sparse_layers import Description


def mean_diversity(chunk: RoutingChunk, layers: dict[str, Description]) -> np.ndarray:
    """float32 (tokens): different experts of each token, mean over the layers that it passed; nan
    where it passed none.
    """
    total = np.zeros(len(chunk.tokens.sample), dtype=np.float32)
    passed = np.zeros(len(total), dtype=np.float32)
    for name, routing in chunk.layers.items():
        total[routing.rows] += different(routing.expert, layers[name].num_experts)
        passed[routing.rows] += 1
    with np.errstate(invalid="ignore"):
        return total / passed


def random_diversity(experts: int, assignments: int) -> float:
    """Different experts expected of so many independent, uniformly random assignments."""
    return experts * (1 - (1 - 1 / experts) ** assignments)


def random_distinct_diversity(experts: int, heads: int, choices: int) -> float:
    """The same where the choices of one sub-token are different experts."""
    return experts * (1 - (1 - choices / experts) ** heads)
