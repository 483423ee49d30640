"""Sizes of tiles to choose from: a kernel is timed with each at its first call with new sizes.

Each process chooses for itself, and another tile may add numbers up in another order. Where
`torch.use_deterministic_algorithms` is on, the first of them is taken.
"""

from typing import Any

import torch
import triton
from triton import knobs

INTERPRETED = bool(knobs.runtime.interpret)
"""Kernels run on the CPU, in Python, for tests: TRITON_INTERPRET was set."""


def tiles(names: tuple[str, str], *choices: tuple[int, int, int, int]) -> list[triton.Config]:
    """Configurations from two sizes of those names, warps and stages; every GPU has room for the
    first.
    """
    return [
        triton.Config(dict(zip(names, sizes, strict=True)), num_warps=warps, num_stages=stages)
        for *sizes, warps, stages in choices
    ]


PRODUCT = tiles(
    ("BN", "BK"), (64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 8, 3), (128, 64, 4, 4)
)
HEAVY = tiles(("BN", "BK"), (32, 32, 4, 3), (64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 8, 3))
"""For a product with much before and behind it in registers."""
OUTER = tiles(
    ("BA", "BB"), (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 4, 3), (128, 64, 4, 3), (128, 128, 8, 3)
)


def tuned(key: list[str], configs: list[triton.Config]) -> Any:
    """Chooses one of the configurations for every `key`; the interpreter has nothing to time."""
    tried = configs[:1] if INTERPRETED else configs
    return triton.autotune(tried, key, prune_configs_by={"early_config_prune": _few})


def _few(configs: list[triton.Config], named: dict[str, Any], **given: Any) -> list[triton.Config]:
    """Those to time. Without TF32 float32 has no tensor cores and unrolls into much code: two."""
    if torch.are_deterministic_algorithms_enabled():
        return configs[:1]
    return configs[:2] if given["PRECISION"] == "ieee" else configs
