"""Matrices and what they are multiplied with in few bits, while training too.

The weights that an optimizer moves stay exact. A forward rounds them and its rows, and gradients
pass as if it had not ("straight-through").
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_SMALLEST = 1e-5


class Quantization(ABC):
    """How a product is rounded. Abstract; holds no weights, so layers may share one."""

    @abstractmethod
    def weight(self, weight: Float[Tensor, "*experts a b"]) -> Float[Tensor, "*experts a b"]:
        """A matrix, or those of several experts, each rounded by itself."""

    @abstractmethod
    def row(self, row: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """What a matrix is multiplied with, each row rounded by itself."""


class BitNet(Quantization):
    """BitNet b1.58: a weight is -1, 0 or 1 times its matrix's mean size; rows have 8 bits.

    Features are multiples of 1/127 of the row's largest one. Rounding is done in float32.

    Sources: https://arxiv.org/abs/2402.17764; what the released code of
    https://arxiv.org/abs/2411.16205 does for `absmean` and `absmax_per_token`.
    """

    def weight(self, weight: Float[Tensor, "*experts a b"]) -> Float[Tensor, "*experts a b"]:
        return _Ternary.apply(weight)

    def row(self, row: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        return _EightBits.apply(row)


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor) -> Tensor:
        exact = weight.float()
        scale = 1 / exact.abs().mean(dim=(-2, -1), keepdim=True).clamp(min=_SMALLEST)
        return ((exact * scale).round().clamp(-1, 1) / scale).to(weight.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad


class _EightBits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, row: Tensor) -> Tensor:
        exact = row.float()
        scale = 127 / exact.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST)
        return ((exact * scale).round() / scale).to(row.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad


def rounded(
    quantization: Quantization | None, row: Float[Tensor, "*rows width"]
) -> Float[Tensor, "*rows width"]:
    """The rows as a product reads them; the same without a quantization."""
    return row if quantization is None else quantization.row(row)


def make_linear(
    dim_in: int, dim_out: int, bias: bool, quantization: Quantization | None
) -> nn.Linear:
    """A linear map, rounded if so wished, with torch's own start."""
    if quantization is None:
        return nn.Linear(dim_in, dim_out, bias=bias)
    return QuantizedLinear(dim_in, dim_out, bias, quantization)


class QuantizedLinear(nn.Linear):
    """A linear map that rounds its matrix and what it reads, but not its bias."""

    def __init__(self, dim_in: int, dim_out: int, bias: bool, quantization: Quantization):
        super().__init__(dim_in, dim_out, bias)
        self.quantization = quantization

    def forward(self, input: Float[Tensor, "*rows dim_in"]) -> Float[Tensor, "*rows dim_out"]:
        weight = self.quantization.weight(self.weight)
        return F.linear(self.quantization.row(input), weight, self.bias)
