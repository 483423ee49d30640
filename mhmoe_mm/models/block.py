"""One layer of a transformer: attention, then a feed-forward net.

Each stands behind a norm and beside a residual path.
"""

from jaxtyping import Bool, Float
from timm.layers import DropPath
from torch import Tensor, nn

from mhmoe_mm.models.attention import Attention, Past
from mhmoe_mm.models.branches import Multiway, MultiwayFFN
from mhmoe_mm.moe.routing import Kinds, Load


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + ffn(norm(x))`.

    While training, a sample leaves out either summand with probability `drop_path`. Returns its
    output and the loads of its sparse feed-forward nets by branch; keeps nothing.
    """

    def __init__(
        self,
        attention_norm: Multiway,
        attention: Attention,
        ffn_norm: Multiway,
        ffn: MultiwayFFN,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.ffn_norm, self.ffn = ffn_norm, ffn
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        split: int,
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None,
        keep: Bool[Tensor, "batch seq"] | None,
        kinds: Kinds,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], dict[str, Load]]:
        x = x + self.drop_path(self.attention(self.attention_norm(x, split), split, mask, past))
        y, loads = self.ffn(self.ffn_norm(x, split), split, keep, kinds)
        return x + self.drop_path(y), loads
