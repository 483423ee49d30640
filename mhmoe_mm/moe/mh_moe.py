"""Sparse mixture of experts, with one head or many.

A sparse layer sends every token to a few experts. A multi-head layer first cuts each token into
`num_heads` sub-tokens, so that different experts can read different parts of it. To the router this
is the same sequence with `num_heads` times more tokens, each `num_heads` times narrower:

      x (batch seq dim)
        |  head_proj                      mix features before they are cut apart
        |  cut      (batch seq*heads sub)
        |  moe      router -> experts     see routers.py, experts.py
        |  join     (batch seq dim)
        v  merge_proj                     mix what different experts returned
      y (batch seq dim)

Sources: https://arxiv.org/abs/2404.15045 and https://arxiv.org/abs/2411.16205.
"""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mhmoe_mm.moe.experts import Experts, GeluExperts
from mhmoe_mm.moe.quantization import Quantization, make_linear
from mhmoe_mm.moe.routers import TopKRouter
from mhmoe_mm.moe.routing import Kinds, Load, Router

RouterFactory = Callable[[int, int], Router]
ExpertsFactory = Callable[[int, int], Experts]
FeedForwardFactory = Callable[[int], nn.Module]


class SparseMoE(nn.Module):
    """Every token to a few of many experts.

    Args:
        width: features of a token.
        num_experts: how many experts there are.
        router: makes the router from (width, num_experts).
        experts: makes the experts from (num_experts, width).
        shared: makes a feed-forward net from (width) that reads every token besides the chosen
            experts.
    """

    def __init__(
        self,
        width: int,
        num_experts: int = 8,
        router: RouterFactory = TopKRouter,
        experts: ExpertsFactory = GeluExperts,
        shared: FeedForwardFactory | None = None,
    ):
        super().__init__()
        self.router = router(width, num_experts)
        self.experts = experts(num_experts, width)
        self.shared = None if shared is None else shared(width)

    def forward(
        self,
        x: Float[Tensor, "batch seq width"],
        keep: Bool[Tensor, "batch seq"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Float[Tensor, "batch seq width"], Load]:
        """Route the tokens; padding (`keep` false) is answered with zeros and counted nowhere."""
        token = x.flatten(0, 1)
        plan, load = self.router(
            token,
            None if keep is None else keep.flatten(),
            None if kinds is None else Kinds(kinds.index.flatten(), kinds.names),
        )
        mixed = self.experts(token, plan).view(x.shape)
        if self.shared is not None:
            mixed = mixed + self.shared(x, keep, kinds)[0]
        return mixed, load


class MHMoE(nn.Module):
    """A sparse layer over sub-tokens: cut every token in `num_heads`, route the pieces, join the
    answers.

    Args:
        dim: features of a token; a multiple of `num_heads`.
        num_heads: sub-tokens per token.
        num_experts, router, experts: as in SparseMoE, for sub-tokens of dim / num_heads features.
        shared: makes a feed-forward net from (dim) that reads every whole token besides.
        head_layers, merge_layers: linear maps before the cut and after the join, with ReLU between
            several; 0 for none.
        subtoken_residual: add each sub-token to its answer before joining. The first paper's
            equation 6 says so; neither released code nor the second paper does.
        quantization: rounds the matrices of the head and merge maps and what they read, which
            neither paper does; experts and the shared net have options of their own.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 2,
        num_experts: int = 8,
        router: RouterFactory = TopKRouter,
        experts: ExpertsFactory = GeluExperts,
        shared: FeedForwardFactory | None = None,
        head_layers: int = 1,
        merge_layers: int = 1,
        subtoken_residual: bool = False,
        quantization: Quantization | None = None,
    ):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(
                f"A token of dim={dim} features cannot be cut into num_heads={num_heads} equal "
                "sub-tokens; choose num_heads that divides dim."
            )
        self.num_heads, self.subtoken_residual = num_heads, subtoken_residual
        self.head_proj = _projection(dim, head_layers, 2**-0.5, quantization)
        self.moe = SparseMoE(dim // num_heads, num_experts, router, experts)
        self.merge_proj = _projection(dim, merge_layers, 1.0, quantization)
        if isinstance(last := self.merge_proj[-1] if merge_layers else None, nn.Linear):
            nn.init.zeros_(last.bias)
        self.shared = None if shared is None else shared(dim)

    @property
    def router(self) -> Router:
        """The router of the sub-tokens."""
        return self.moe.router

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        keep: Bool[Tensor, "batch seq"] | None = None,
        kinds: Kinds | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], Load]:
        """Route the sub-tokens; those of padding (`keep` false) are answered with zeros and counted
        nowhere.
        """
        heads = self.num_heads
        cut = rearrange(self.head_proj(x), "b s (h w) -> b (s h) w", h=heads)
        sub_keep = None if keep is None else keep.repeat_interleave(heads, dim=1)
        sub_kinds = kinds and Kinds(kinds.index.repeat_interleave(heads, dim=1), kinds.names)
        mixed, load = self.moe(cut, sub_keep, sub_kinds)
        if self.subtoken_residual:
            mixed = mixed + cut
        y = self.merge_proj(rearrange(mixed, "b (s h) w -> b s (h w)", h=heads))
        if self.shared is not None:
            y = y + self.shared(x, keep, kinds)[0]
        return y, load


def _projection(
    dim: int, num_layers: int, gain: float, quantization: Quantization | None
) -> nn.Sequential:
    """`num_layers` linear maps with ReLU between, Xavier-initialised as attention's maps are; empty
    for 0.
    """
    if num_layers < 0:
        raise ValueError(f"The number of head or merge layers is 0 or more, got {num_layers}.")
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        linear = make_linear(dim, dim, True, quantization)
        nn.init.xavier_uniform_(linear.weight, gain=gain)
        layers += [nn.ReLU(), linear] if layers else [linear]
    return nn.Sequential(*layers)
