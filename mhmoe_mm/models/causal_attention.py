"""Self-attention of a causal decoder: every token looks at itself and at those before it."""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mhmoe_mm.models.attention import Past, check_heads
from mhmoe_mm.models.init import linear
from mhmoe_mm.models.positions import Rotation
from mhmoe_mm.moe.quantization import Quantization


class CausalAttention(nn.Module):
    """Multi-head attention, optionally with biases and with Magneto's second norm.

    Args:
        dim, num_heads: width of a token, and heads it is cut into.
        bias: whether the four maps have biases.
        sub_norm: a LayerNorm before the last map (https://arxiv.org/abs/2210.06423).
        quantization: rounds the matrices of the four maps and what they read.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        bias: bool = False,
        sub_norm: bool = False,
        quantization: Quantization | None = None,
    ):
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (
            linear(dim, dim, bias, quantization) for _ in range(4)
        )
        self.sub_norm = nn.LayerNorm(dim) if sub_norm else None

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotation: Rotation | None,
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None,
        past: Past | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        """Mix the tokens.

        `mask` is true where a query (third axis) may look at a key (fourth); None: at itself and
        all before it. With `past`, which this call extends, the keys are those of the past and then
        those of `x`, and a mask must say who sees whom.
        """
        query, key, value = (
            rearrange(project(x), "b s (h w) -> b h s w", h=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        if past is not None:
            key, value = past.extend(key, value)
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        y = rearrange(y, "b h s w -> b s (h w)")
        return self.out(y if self.sub_norm is None else self.sub_norm(y))
