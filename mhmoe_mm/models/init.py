"""How the networks' own weights start: small and normal.

Truncated normal of standard deviation 0.02 for every matrix, embedding, position and the class and
mask tokens; zero biases. The released code leaves positions at N(0, 1), which drowns the tokens of
a network trained from scratch, and cuts its normal at one standard deviation, which halves it;
neither is copied. Every module starts itself as it is built, so sparse layers keep their own start.
"""

from torch import Tensor, nn

from mhmoe_mm.moe.quantization import Quantization, make_linear

STD = 0.02


def start_small(weight: Tensor) -> None:
    """Fill in place from a normal of standard deviation 0.02, cut at twice that."""
    nn.init.trunc_normal_(weight, std=STD, a=-2 * STD, b=2 * STD)


def linear(
    dim_in: int, dim_out: int, bias: bool = True, quantization: Quantization | None = None
) -> nn.Linear:
    """A linear map that starts small, rounded if so wished."""
    module = make_linear(dim_in, dim_out, bias, quantization)
    start_small(module.weight)
    if bias:
        nn.init.zeros_(module.bias)
    return module


def unit_linear(dim_in: int, dim_out: int) -> nn.Linear:
    """A linear map with bias that keeps the size of what it reads (Xavier), whatever the width."""
    module = nn.Linear(dim_in, dim_out)
    nn.init.xavier_uniform_(module.weight)
    nn.init.zeros_(module.bias)
    return module
