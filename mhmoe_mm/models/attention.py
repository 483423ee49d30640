"""Self-attention over the whole sequence, image and text together.

Only the projections may differ by modality.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mhmoe_mm.models.branches import Multiway, Route
from mhmoe_mm.models.init import linear


class Attention(nn.Module):
    """Multi-head attention; projections, and the second norm if `sub_norm`, branched by `route`."""

    def __init__(self, dim: int, num_heads: int, route: Route, sub_norm: bool = True):
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"Attention cannot cut dim={dim} into num_heads={num_heads} equal heads: "
                "choose num_heads among the divisors of dim."
            )
        self.num_heads = num_heads
        self.query = Multiway(route, lambda: linear(dim, dim))
        self.key = Multiway(route, lambda: linear(dim, dim))
        self.value = Multiway(route, lambda: linear(dim, dim))
        self.sub_norm = Multiway(route, lambda: nn.LayerNorm(dim)) if sub_norm else None
        self.out = Multiway(route, lambda: linear(dim, dim))

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        split: int,
        mask: Bool[Tensor, "#batch #heads #seq seq"] | None,
    ) -> Float[Tensor, "batch seq dim"]:
        """`mask` is true where a query (third axis) may look at a key (fourth); None: anywhere."""
        query, key, value = (
            rearrange(project(x, split), "b s (h w) -> b h s w", h=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y = rearrange(y, "b h s w -> b s (h w)")
        if self.sub_norm is not None:
            y = self.sub_norm(y, split)
        return self.out(y, split)
