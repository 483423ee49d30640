"""Small networks for the tests, and a sparse layer that needs no router."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import Layout, PaperLayout, ReleasedLayout, SharedLayout
from mhmoe_mm.moe.routing import Kinds, Load, total_load

PATCHES, DIM, LAYERS, VOCAB, SEQ, BATCH = 9, 22, 5, 53, 7, 3
LAYOUTS = (ReleasedLayout, PaperLayout, SharedLayout)


class CountingFFN(nn.Module):
    """A dense net that reports, as a sparse one would, how many real tokens of each kind it saw."""

    def __init__(self, dim: int):
        super().__init__()
        self.net = GeluFFN(dim, 31)

    def forward(self, x: Tensor, keep: Tensor | None, kinds: Kinds) -> tuple[Tensor, Load]:
        real = torch.ones_like(kinds.index, dtype=torch.bool) if keep is None else keep
        seen = torch.stack(
            [((kinds.index == k) & real).sum() for k in range(len(kinds.names))]
        ).float()
        zero = x.new_zeros(())
        load = Load(
            count=seen[:, None],
            dropped=torch.zeros_like(seen),
            token=seen,
            first=seen.sum()[None],
            prob=seen.sum()[None],
            entropy=zero,
            square_logsumexp=zero,
            names=kinds.names,
        )
        return self.net(x)[0], load


def merged(forwards: Iterable[dict[str, Load]]) -> dict[str, Load]:
    """The loads of several forwards, added up layer by layer."""
    forwards = list(forwards)
    names = dict.fromkeys(name for loads in forwards for name in loads)
    return {name: total_load(loads[name] for loads in forwards if name in loads) for name in names}


def dense_ffn(dim: int) -> GeluFFN:
    return GeluFFN(dim, 29)


def small_net(layout: Layout, **others) -> BEiT3:
    torch.manual_seed(0)
    sizes = {
        "image_size": 12,
        "patch_size": 4,
        "vocab_size": VOCAB,
        "dim": DIM,
        "num_layers": LAYERS,
    }
    return BEiT3(layout, **(sizes | {"num_heads": 2, "max_text": 11} | others)).eval()


def small_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Images, texts, and which of their tokens are padding."""
    draw = torch.Generator().manual_seed(1)
    image = torch.randn(BATCH, 3, 12, 12, generator=draw)
    text = torch.randint(VOCAB, (BATCH, SEQ), generator=draw)
    pad = torch.arange(SEQ) >= torch.tensor([[7], [5], [2]])
    return image, text, pad
