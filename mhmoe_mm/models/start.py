"""How a whole network may start instead of small (`init.py`): for narrow nets trained from scratch.

Small weights of one size suit wide networks. In one of 96 features they make every block whisper,
and what tokens are is lost among what blocks add: such a network reads the question for a long time
before it looks at the image (figures in `docs/log.md`).
"""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from mhmoe_mm.models.attention import Attention
from mhmoe_mm.models.block import Block
from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.embeddings import ImageEmbedding, TextEmbedding
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE

T = TypeVar("T", bound=nn.Module)


class UnitStart:
    """Everything that flows through the network has a size near 1, whatever its width and depth.

    Linear maps are Xavier-uniform with zero biases, patches keep the variance of their pixels,
    token and class embeddings are standard normal. Sparse layers keep their own start, which knows
    their width already. What the blocks add to a token is as large as the token when all of them
    have added: the last map of each attention and feed-forward net is scaled by
    `(2 num_layers) ** -0.5`, as in GPT-2.

    Args:
        position: standard deviation of the position embeddings; below 1, so that where a token
            stands does not drown what it is.
    """

    def __init__(self, position: float = 0.2):
        if position <= 0:
            raise ValueError(f"position is a standard deviation, so positive, got {position}.")
        self.position = position

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> None:
        """Fill the weights of a network in place."""
        for module in _outside_sparse_layers(net):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, ImageEmbedding):
                nn.init.normal_(module.patch.weight, std=module.patch.weight[0].numel() ** -0.5)
                nn.init.normal_(module.cls)
                nn.init.normal_(module.position, std=self.position)
            elif isinstance(module, TextEmbedding):
                nn.init.normal_(module.token.weight)
                nn.init.normal_(module.position, std=self.position)
        blocks = [module for module in net.modules() if isinstance(module, Block)]
        for block in blocks:
            scaled_last_maps(block, len(blocks))


@torch.no_grad()
def scaled_last_maps(block: T, num_layers: int) -> T:
    """The block, so that all blocks of a network add together as much as one added before.

    The last map of its attention and feed-forward net is scaled by `(2 num_layers) ** -0.5`, in
    place.
    """
    for weight in _last_maps(block):
        weight.mul_((2 * num_layers) ** -0.5)
    return block


def _outside_sparse_layers(module: nn.Module) -> Iterator[nn.Module]:
    """A module and all below it, less sparse layers."""
    if isinstance(module, SparseMoE | MHMoE):
        return
    yield module
    for child in module.children():
        yield from _outside_sparse_layers(child)


def _last_maps(module: nn.Module) -> Iterator[Tensor]:
    """The weights that what a block adds comes from, one of each branch."""
    if isinstance(module, Attention):
        yield from (out.get_parameter("weight") for out in module.out.values())
    elif isinstance(module, CausalAttention):
        yield module.out.weight
    elif isinstance(module, GeluFFN | SwiGLUFFN):
        yield module.down.weight
    elif isinstance(module, SparseMoE | MHMoE):
        if isinstance(module, SparseMoE):
            yield module.experts.get_parameter("w_out")
        elif len(module.merge_proj):
            yield module.merge_proj[-1].get_parameter("weight")
        else:
            yield from _last_maps(module.moe)
        if module.shared is not None:
            yield from _last_maps(module.shared)
    else:
        for child in module.children():
            yield from _last_maps(child)
