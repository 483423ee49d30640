"""The experts: many small feed-forward nets whose weights are stacked, [experts in out].

How rows reach their experts is the backend's business; a class here says what one expert computes.
"Sub-norm" is a LayerNorm between the activation and the last product (Magneto's sub-LN,
https://arxiv.org/abs/2210.06423). With a `quantization` the matrices, one expert's at a time, and
what they are multiplied with are rounded; biases and norms are not.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mhmoe_mm.moe.backend_auto import AutoBackend
from mhmoe_mm.moe.backends import Backend, FeedForward, Form, Rows
from mhmoe_mm.moe.own_part import own_part
from mhmoe_mm.moe.quantization import Quantization, rounded
from mhmoe_mm.moe.routing import Plan


class Experts(nn.Module, ABC):
    """Carries out a plan: every token to its experts and back. Abstract."""

    num_experts: int
    backend: Backend
    quantization: Quantization | None

    def forward(self, token: Float[Tensor, "n width"], plan: Plan) -> Float[Tensor, "n width"]:
        """The weighted sum of the experts' answers; under autocast computed in its precision."""
        device = token.device.type
        if torch.is_autocast_enabled(device):
            token = token.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # a grouped product does not follow autocast
            form = Form(self.form, self.feed_forward)
            return self.backend(token, plan, self.num_experts, form)

    def affine(
        self,
        row: Float[Tensor, "rows a"],
        rows: Rows,
        weight: Float[Tensor, "experts a b"],
        bias: Float[Tensor, "experts b"] | None,
    ) -> Float[Tensor, "rows b"]:
        """Every row times its expert's matrix, which is rounded if so wished, plus a bias."""
        weight = own_part(weight)
        if self.quantization is not None:
            weight = self.quantization.weight(weight)
        product = rows.product(row, weight.to(row.dtype))
        # In place: nobody else reads the product, and fresh memory costs more than the sum.
        return product if bias is None else product.add_(rows.vector(own_part(bias).to(row.dtype)))

    @abstractmethod
    def form(self, row: Float[Tensor, "rows width"], rows: Rows) -> Float[Tensor, "rows width"]:
        """What an expert computes."""

    def feed_forward(self) -> FeedForward | None:
        """The same as weights for a backend that fuses, where it is no more than `FeedForward`."""
        return None


class GeluExperts(Experts):
    """`gelu(x W_in + b_in) W_out + b_out`, GELU exact; with `sub_norm` as in the first paper."""

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int = 2048,
        bias: bool = True,
        sub_norm: bool = False,
        backend: Callable[[], Backend] = AutoBackend,
        quantization: Quantization | None = None,
    ):
        super().__init__()
        self.num_experts, self.backend = num_experts, backend()
        self.quantization = quantization
        self.w_in = _stacked(num_experts, width, hidden)
        self.w_out = _stacked(num_experts, hidden, width)
        self.b_in = _stacked_bias(num_experts, hidden, width) if bias else None
        self.b_out = _stacked_bias(num_experts, width, hidden) if bias else None
        self.norm = StackedNorm(num_experts, hidden) if sub_norm else None

    def feed_forward(self) -> FeedForward | None:
        if self.norm is not None or self.quantization is not None:
            return None
        return FeedForward(*_own_parts(self.w_in, self.b_in, self.w_out, self.b_out))

    def form(self, row: Float[Tensor, "rows width"], rows: Rows) -> Float[Tensor, "rows width"]:
        row = rounded(self.quantization, row)
        hidden = F.gelu(self.affine(row, rows, self.w_in, self.b_in))
        if self.norm is not None:
            hidden = self.norm(hidden, rows)
        return self.affine(rounded(self.quantization, hidden), rows, self.w_out, self.b_out)


class SwiGLUExperts(Experts):
    """`(x W_in * silu(x W_gate)) W_out`, without biases by default; the second paper's experts."""

    def __init__(
        self,
        num_experts: int,
        width: int,
        hidden: int = 2048,
        bias: bool = False,
        sub_norm: bool = False,
        backend: Callable[[], Backend] = AutoBackend,
        quantization: Quantization | None = None,
    ):
        super().__init__()
        self.num_experts, self.backend = num_experts, backend()
        self.quantization = quantization
        self.w_in = _stacked(num_experts, width, hidden)
        self.w_gate = _stacked(num_experts, width, hidden)
        self.w_out = _stacked(num_experts, hidden, width)
        self.b_in = _stacked_bias(num_experts, hidden, width) if bias else None
        self.b_gate = _stacked_bias(num_experts, hidden, width) if bias else None
        self.b_out = _stacked_bias(num_experts, width, hidden) if bias else None
        self.norm = StackedNorm(num_experts, hidden) if sub_norm else None

    def feed_forward(self) -> FeedForward | None:
        if self.norm is not None or self.quantization is not None:
            return None
        gate = (self.w_gate, self.b_gate)
        return FeedForward(*_own_parts(self.w_in, self.b_in, self.w_out, self.b_out, *gate))

    def form(self, row: Float[Tensor, "rows width"], rows: Rows) -> Float[Tensor, "rows width"]:
        row = rounded(self.quantization, row)
        gate = F.silu(self.affine(row, rows, self.w_gate, self.b_gate))
        hidden = self.affine(row, rows, self.w_in, self.b_in) * gate
        if self.norm is not None:
            hidden = self.norm(hidden, rows)
        return self.affine(rounded(self.quantization, hidden), rows, self.w_out, self.b_out)


class StackedNorm(nn.Module):
    """LayerNorm with one scale and one shift per expert, computed in float32."""

    def __init__(self, num_experts: int, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_experts, width))
        self.bias = nn.Parameter(torch.zeros(num_experts, width))

    def forward(self, row: Float[Tensor, "rows width"], rows: Rows) -> Float[Tensor, "rows width"]:
        normal = F.layer_norm(row.float(), row.shape[1:], eps=self.eps)
        scaled = normal * rows.vector(own_part(self.weight))
        return (scaled + rows.vector(own_part(self.bias))).to(row.dtype)


def _own_parts(*weights: Tensor | None) -> Any:
    return [None if weight is None else own_part(weight) for weight in weights]


def _stacked(num_experts: int, fan_in: int, fan_out: int) -> nn.Parameter:
    """Matrices with nn.Linear's default init, U(+-1/sqrt(fan_in)), as in the released code."""
    return _uniform(torch.empty(num_experts, fan_in, fan_out), fan_in)


def _stacked_bias(num_experts: int, width: int, fan_in: int) -> nn.Parameter:
    return _uniform(torch.empty(num_experts, width), fan_in)


def _uniform(tensor: Tensor, fan_in: int) -> nn.Parameter:
    bound = fan_in**-0.5
    return nn.Parameter(nn.init.uniform_(tensor, -bound, bound))
