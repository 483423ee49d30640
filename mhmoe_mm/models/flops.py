"""Floating-point operations of a step, counted as they are called."""

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mhmoe_mm.moe import backends  # noqa: F401 defines the grouped product


class Flops:
    """Counts while it is entered: matrix products, convolutions, grouped products of experts, and
    attention. A multiply-add is two; what works element by element counts nothing.
    """

    def __init__(self) -> None:
        aten = torch.ops.aten
        self._counter = FlopCounterMode(
            display=False,
            custom_mapping={
                torch.ops.mhmoe_mm.grouped_mm: _grouped,
                aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            },
        )

    def __enter__(self) -> "Flops":
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)

    @property
    def total(self) -> float:
        """All of them so far."""
        return float(self._counter.get_total_flops())


def _grouped(a: Any, b: Any, end: Any, out_shape: Any = None, **_: Any) -> int:
    """Shapes (rows a) x (experts a b), every row once; or (a rows) x (rows b), of weights."""
    return 2 * prod(a) * b[-1]


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Shapes (batch heads seq width); scores and sums over values, masked or not."""
    batch, heads, seq, width = query
    return 2 * batch * heads * seq * key[2] * (width + value[3])


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """Scores once more, and two products for each of the forward's."""
    return round(2.5 * _attention(query, key, value))
