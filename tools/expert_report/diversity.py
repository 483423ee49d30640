"""Assign-diversity: how many different experts read the sub-tokens of a token.

Source: https://arxiv.org/abs/2404.15045, figures 7, 8 and 10.
"""

import numpy as np

from mhmoe_mm.callbacks.routing_tokens import RoutingChunk
from mhmoe_mm.moe.sparse_layers import Description

_BITS = 64


def different(expert: np.ndarray, num_experts: int) -> np.ndarray:
    """uint8 or uint16 (rows): different experts among those of a row.

    Args:
        expert: int (rows heads choices), -1 for none.
    """
    flat = expert.reshape(len(expert), -1)
    total = np.zeros(len(flat), dtype=np.uint16)
    for first in range(0, num_experts, _BITS):
        # Bit e of a word stands for expert first + e; -1 takes the last entry, which is no bit.
        bit = np.zeros(num_experts + 1, dtype=np.uint64)
        own = np.arange(first, min(first + _BITS, num_experts))
        bit[own] = np.uint64(1) << (own - first).astype(np.uint64)
        seen = np.zeros(len(flat), dtype=np.uint64)
        for column in range(flat.shape[1]):
            seen |= bit[flat[:, column]]
        total += np.bitwise_count(seen)
    return total


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
