"""Self-attention over the whole sequence, image and text together.

Only the projections may differ by modality.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mhmoe_mm.models.branches import Multiway, Route
from mhmoe_mm.models.init import linear


class Past:
    """Keys and values of the tokens that one attention has read, for texts that are read on.

    An argument of the call that fills it, never kept on a module.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values (batch heads seq width) of new tokens; returns all of them."""
        if self.key is not None and self.value is not None:
            key, value = torch.cat([self.key, key], dim=2), torch.cat([self.value, value], dim=2)
        self.key, self.value = key, value
        return key, value

    def forget(self, tokens: Int[Tensor, " tokens"]) -> None:
        """Drop the tokens at these places."""
        assert self.key is not None
        assert self.value is not None
        kept = torch.ones(self.key.shape[2], dtype=torch.bool, device=self.key.device)
        kept[tokens] = False
        self.key, self.value = self.key[:, :, kept], self.value[:, :, kept]

    def reorder(self, rows: Int[Tensor, " rows"]) -> None:
        """Row i becomes what row `rows[i]` was; there may be more or fewer rows than before."""
        assert self.key is not None
        assert self.value is not None
        self.key, self.value = self.key[rows], self.value[rows]


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse a width that cannot be cut into so many equal heads."""
    if dim % num_heads:
        raise ValueError(
            f"Attention cannot cut dim={dim} into num_heads={num_heads} equal heads: "
            "choose num_heads among the divisors of dim."
        )


class Attention(nn.Module):
    """Multi-head attention; projections, and the second norm if `sub_norm`, branched by `route`."""

    def __init__(self, dim: int, num_heads: int, route: Route, sub_norm: bool = True):
        super().__init__()
        check_heads(dim, num_heads)
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
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None,
        past: Past | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        """Mix the tokens.

        `mask` is true where a query (third axis) may look at a key (fourth); None: anywhere. With
        `past`, which this call extends, the keys are those of the past and then those of `x`.
        """
        query, key, value = (
            rearrange(project(x, split), "b s (h w) -> b h s w", h=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        if past is not None:
            key, value = past.extend(key, value)
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        y = rearrange(y, "b h s w -> b s (h w)")
        if self.sub_norm is not None:
            y = self.sub_norm(y, split)
        return self.out(y, split)
