"""A trained feed-forward net as plain tensors, and what it does to what its norm lets through."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN


@dataclass(frozen=True)
class DenseFFN:
    """`down(norm(activation(x)))`: the activation is `gelu(up x + up_bias)`, or with a gate
    `silu(gate x) * (up x)`; matrices are [out in], as nn.Linear has them.
    """

    up: Float[Tensor, "hidden dim"]
    down: Float[Tensor, "dim hidden"]
    up_bias: Float[Tensor, " hidden"]
    down_bias: Float[Tensor, " dim"]
    gate: Float[Tensor, "hidden dim"] | None = None
    norm: tuple[Float[Tensor, " hidden"], Float[Tensor, " hidden"], float] | None = None
    """Scale, shift and epsilon of a LayerNorm before `down`."""

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return len(self.up)

    def activation(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows hidden"]:
        """What the hidden units say, before any norm."""
        up = x @ self.up.T + self.up_bias
        return F.gelu(up) if self.gate is None else F.silu(x @ self.gate.T) * up

    def without_norm(self, x: Float[Tensor, "rows dim"]) -> "DenseFFN":
        """Nearly the same net, with the norm's mean and deviation over the hidden units as
        constants: between tokens such as `x` they hardly differ.
        """
        if self.norm is None:
            return self
        scale, shift, eps = self.norm
        said = self.activation(x)
        deviation = (said.var(dim=1, correction=0) + eps).sqrt().mean()
        down = self.down * scale / deviation
        bias = self.down_bias + self.down @ shift - down.sum(dim=1) * said.mean()
        return DenseFFN(self.up, down, self.up_bias, bias, self.gate)

    def __call__(self, x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows dim"]:
        hidden = self.activation(x)
        if self.norm is not None:
            scale, shift, eps = self.norm
            hidden = F.layer_norm(hidden, hidden.shape[1:], scale, shift, eps)
        return hidden @ self.down.T + self.down_bias


def dense_ffn(module: nn.Module) -> DenseFFN | None:
    """The tensors of a dense feed-forward net, in float32; None where it is something else."""
    if isinstance(module, GeluFFN):
        norm = None
        if isinstance(module.sub_norm, nn.LayerNorm):
            scale, shift = module.sub_norm.weight, module.sub_norm.bias
            norm = (scale.detach().float(), shift.detach().float(), module.sub_norm.eps)
        return DenseFFN(
            module.up.weight.detach().float(),
            module.down.weight.detach().float(),
            module.up.bias.detach().float(),
            module.down.bias.detach().float(),
            norm=norm,
        )
    if isinstance(module, SwiGLUFFN):
        up, down = module.up.weight.detach().float(), module.down.weight.detach().float()
        zero = torch.zeros(len(up)), torch.zeros(len(down))
        return DenseFFN(up, down, *zero, gate=module.gate.weight.detach().float())
    return None
