"""The layers that the benchmarks measure."""

from dataclasses import dataclass

from torch import nn

from mhmoe_mm.moe.layer_shape import LayerShape


@dataclass(frozen=True)
class Case:
    """One layer and how many tokens it reads."""

    tokens: int
    shape: LayerShape

    @property
    def name(self) -> str:
        s = self.shape
        return f"T{self.tokens}-d{s.dim}-h{s.num_heads}-E{s.num_experts}-k{s.top_k}-f{s.hidden}"

    @property
    def rows(self) -> int:
        """Rows that experts read: every sub-token of every token, k times."""
        return int(self.tokens * self.shape.num_heads * self.shape.top_k)

    def dense_hidden(self) -> int:
        """Inner width of the dense net with the layer's multiply-adds, the router's left out."""
        return int(self.shape.active_macs) // (2 * self.shape.dim)

    def dense(self) -> nn.Module:
        """That net."""
        dim, hidden = self.shape.dim, self.dense_hidden()
        return nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False)
        )


def case(tokens: int, dim: int, heads: int, experts: int, top_k: int, hidden: int) -> Case:
    maps = 1 if heads > 1 else 0
    shape = LayerShape(dim, hidden, experts, top_k, heads, head_layers=maps, merge_layers=maps)
    return Case(tokens, shape)


CASES = [
    case(4096, 512, 1, 8, 1, 2048),
    case(4096, 512, 1, 8, 2, 1024),
    case(4096, 512, 2, 8, 2, 1024),
    case(4096, 512, 4, 32, 2, 512),
    case(4096, 384, 4, 32, 2, 384),
    case(2048, 384, 2, 8, 2, 768),
    case(2048, 512, 1, 32, 2, 1024),
    case(2048, 384, 2, 128, 2, 768),
    case(8192, 512, 4, 128, 2, 512),
]
