"""Layouts: what the layers of a multiway encoder are made of, and what image and text share.

                    attention and its norms   feed-forward net and its norm       final norm
    ReleasedLayout  image | text              image | text                        image | text
    PaperLayout     shared                    image | text | fused (top layers)   shared
    SharedLayout    shared                    shared                              shared

The BEiT-3 paper (https://arxiv.org/abs/2208.10442) and the models released with it are different
networks. The paper does not say where its norms stand or which are shared: here a norm belongs to
what it feeds, so it is branched exactly as that is. A layout holds factories, no modules: it is
asked once for every layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import nn

from mhmoe_mm.models.attention import Attention
from mhmoe_mm.models.block import Block
from mhmoe_mm.models.branches import (
    ALL_SHARED,
    BY_MODALITY,
    PAIRS_FUSED,
    Multiway,
    MultiwayFFN,
    Route,
)
from mhmoe_mm.models.ffn import GeluFFN, check_sparse_every, ffn_of_layer


class Layout(ABC):
    """Says what layer i is made of. Abstract; each way of sharing is a final class.

    `dense` and `sparse` build one feed-forward net from dim. Without `sparse` all layers are dense;
    with it every `sparse_every`-th is sparse in all its branches: by default layers 1, 3, 5, ...,
    counted from 0. `sub_norm` puts Magneto's second norm into attention; feed-forward nets have a
    switch of their own.
    """

    attention_route: ClassVar[Route]
    """Also the route of the final norm."""

    def __init__(
        self,
        dense: Callable[[int], nn.Module] = GeluFFN,
        sparse: Callable[[int], nn.Module] | None = None,
        sparse_every: int = 2,
        sub_norm: bool = True,
    ):
        check_sparse_every(sparse_every)
        self.dense, self.sparse, self.sparse_every = dense, sparse, sparse_every
        self.sub_norm = sub_norm

    @abstractmethod
    def ffn_route(self, layer: int, num_layers: int) -> Route:
        """The branches of the feed-forward place of this layer."""

    def block(
        self, layer: int, num_layers: int, dim: int, num_heads: int, drop_path: float
    ) -> Block:
        """Layer number `layer` of `num_layers`, counted from 0."""
        make = ffn_of_layer(layer, self.dense, self.sparse, self.sparse_every)
        ffn_route = self.ffn_route(layer, num_layers)
        return Block(
            attention_norm=Multiway(self.attention_route, lambda: nn.LayerNorm(dim)),
            attention=Attention(dim, num_heads, self.attention_route, self.sub_norm),
            ffn_norm=Multiway(ffn_route, lambda: nn.LayerNorm(dim)),
            ffn=MultiwayFFN(ffn_route, lambda: make(dim)),
            drop_path=drop_path,
        )

    def final_norm(self, dim: int) -> Multiway:
        """What follows the last layer."""
        return Multiway(self.attention_route, lambda: nn.LayerNorm(dim))


class ReleasedLayout(Layout):
    """As the released base and large models: modalities meet in the attention itself only."""

    attention_route = BY_MODALITY

    def ffn_route(self, layer: int, num_layers: int) -> Route:
        return BY_MODALITY


class PaperLayout(Layout):
    """As the paper's giant: shared attention, image and text with feed-forward nets of their own.

    In the top `fused_layers` layers a pair goes through a third, fused one instead; images and
    texts alone keep theirs.
    """

    attention_route = ALL_SHARED

    def __init__(
        self,
        dense: Callable[[int], nn.Module] = GeluFFN,
        sparse: Callable[[int], nn.Module] | None = None,
        sparse_every: int = 2,
        sub_norm: bool = True,
        fused_layers: int = 3,
    ):
        super().__init__(dense, sparse, sparse_every, sub_norm)
        self.fused_layers = fused_layers

    def ffn_route(self, layer: int, num_layers: int) -> Route:
        if not 0 <= self.fused_layers <= num_layers:
            raise ValueError(
                f"fused_layers is between 0 and num_layers={num_layers}, got {self.fused_layers}."
            )
        return PAIRS_FUSED if layer >= num_layers - self.fused_layers else BY_MODALITY


class SharedLayout(Layout):
    """One attention and one feed-forward net, or one pool of experts, for both modalities."""

    attention_route = ALL_SHARED

    def ffn_route(self, layer: int, num_layers: int) -> Route:
        return ALL_SHARED
