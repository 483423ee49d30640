"""The causal decoder of language models: pre-norm layers, dense or sparse, tied embeddings.

    token -> embedding -> [x + attention(norm(x)), x + ffn(norm(x))] * layers -> norm -> hidden
                                                   |                                      |
                                                   v                     hidden @ embedding.T
                                                 loads

What the papers train it as:

                     norm        positions   feed-forward net      biases, sub-norm
    first paper      LayerNorm   rotary      GELU, sub-norm        yes      https://arxiv.org/abs/2404.15045
    second paper     RMSNorm     rotary      SwiGLU                no       https://arxiv.org/abs/2411.16205
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mhmoe_mm.models.attention import Past
from mhmoe_mm.models.causal import check_looks_back
from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.ffn import SwiGLUFFN, check_sparse_every, ffn_of_layer
from mhmoe_mm.models.init import start_small
from mhmoe_mm.models.parts import part
from mhmoe_mm.models.positions import Positions, RotaryPositions, Rotation
from mhmoe_mm.models.start import scaled_last_maps
from mhmoe_mm.moe.routing import Kinds, Load


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with the papers' epsilon."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__(dim, eps)


class Decoded(NamedTuple):
    """What the decoder makes of its tokens."""

    hidden: Float[Tensor, "batch seq dim"]
    """At padding a finite number that means nothing."""
    loads: dict[str, Load]
    """The load of every sparse layer, by its module path in the network."""


class DecoderLayer(nn.Module):
    """`x + attention(norm(x))`, then `x + ffn(norm(x))`; keeps nothing."""

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: CausalAttention,
        ffn_norm: nn.Module,
        ffn: nn.Module,
    ):
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.ffn_norm, self.ffn = ffn_norm, ffn

    def forward(
        self,
        x: Float[Tensor, "batch seq dim"],
        rotation: Rotation | None,
        mask: Bool[Tensor, "#batch #heads #queries keys"] | None,
        keep: Bool[Tensor, "batch seq"] | None,
        kinds: Kinds | None,
        past: Past | None = None,
    ) -> tuple[Float[Tensor, "batch seq dim"], Load | None]:
        """The new tokens, and the load of the feed-forward net if it is sparse."""
        x = x + self.attention(self.attention_norm(x), rotation, mask, past)
        y, load = self.ffn(self.ffn_norm(x), keep, kinds)
        return x + y, load


class Decoder(nn.Module):
    """A causal transformer; embeddings and output share their weights.

    Matrices start normal with standard deviation 0.02, experts as their own layer starts them; the
    last map of what each layer adds is then scaled by `(2 num_layers) ** -0.5`, as in GPT-2.

    Args:
        vocab_size: tokens of the vocabulary.
        dim, num_layers, num_heads: width, depth, heads of the attention.
        max_text: longest text, in tokens.
        dense: makes a feed-forward net from (dim).
        sparse: makes a sparse layer from (dim); None: all layers are dense.
        sparse_every: every so manieth layer is sparse: 2 for layers 1, 3, 5, ..., from 0.
        positions: makes the positions from (dim, num_heads, max_text).
        norm: makes a norm from (dim).
        attention: makes the attention from (dim, num_heads).

    Raises:
        ValueError: a number that cannot be, or a router that looks at tokens that are yet to come.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        max_text: int = 1024,
        dense: Callable[[int], nn.Module] = SwiGLUFFN,
        sparse: Callable[[int], nn.Module] | None = None,
        sparse_every: int = 2,
        positions: Callable[[int, int, int], Positions] = RotaryPositions,
        norm: Callable[[int], nn.Module] = RMSNorm,
        attention: Callable[[int, int], CausalAttention] = CausalAttention,
    ):
        super().__init__()
        check_sparse_every(sparse_every)
        self.vocab_size, self.dim, self.max_text = vocab_size, dim, max_text
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.positions = positions(dim, num_heads, max_text)
        self.layers = nn.ModuleList(
            part(
                scaled_last_maps(
                    DecoderLayer(
                        norm(dim),
                        attention(dim, num_heads),
                        norm(dim),
                        ffn_of_layer(layer, dense, sparse, sparse_every)(dim),
                    ),
                    num_layers,
                )
            )
            for layer in range(num_layers)
        )
        self.norm = norm(dim)
        check_looks_back(self)
        start_small(self.token_embedding.weight)

    @property
    def output_weight(self) -> Float[Tensor, "vocab dim"]:
        """What hidden vectors are multiplied with to score the vocabulary: the embeddings."""
        return self.token_embedding.weight

    def scores(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        """Logits of the next token."""
        return F.linear(hidden, self.output_weight)

    def forward(
        self,
        token: Int[Tensor, "batch seq"],
        document: Int[Tensor, "batch seq"] | None = None,
        keep: Bool[Tensor, "batch all"] | None = None,
        kinds: Kinds | None = None,
        past: Sequence[Past] | None = None,
    ) -> Decoded:
        """Read the tokens, each after those before it.

        Args:
            token: ids below `vocab_size`.
            document: numbers that never fall; a token looks at tokens of its own document only,
                whose positions begin at 0. None: all are one document.
            keep: false at padding, in front or behind, which no token looks at and no expert
                receives. Positions do not count it. With `past` it tells of what was read before,
                too: (batch, tokens read before + seq). None: there is none.
            kinds: what each token is (a language), to tell loads apart.
            past: one for every layer; each takes up the keys and values of what its layer reads,
                and the next call with it goes on from there. Without documents.

        Raises:
            ValueError: a text longer than `max_text`, `document` together with `past`, or a `keep`
                of another length.
        """
        seq, known = token.shape[1], 0
        if past is not None and past[0].key is not None:
            known = past[0].key.shape[2]
        if known + seq > self.max_text:
            raise ValueError(
                f"The network reads texts of at most {self.max_text} tokens, got {known + seq}: "
                "cut the texts, or build the network with a longer max_text."
            )
        if past is not None and document is not None:
            raise ValueError(
                "Texts that are read on are one document: leave `document` out, or `past`."
            )
        if keep is not None and keep.shape[1] != known + seq:
            raise ValueError(
                f"`keep` tells of every token, also of those read before, so its shape is "
                f"({len(token)}, {known + seq}), got {tuple(keep.shape)}."
            )
        x = self.token_embedding(token)
        place = self._places(token, known, document, keep)
        added = self.positions.added(place)
        if added is not None:
            x = x + added
        rotation = self.positions.rotation(place)
        mask = self._mask(seq, known, document, keep, x.device)
        real = None if keep is None else keep[:, known:]
        if real is not None:
            x = torch.where(real[..., None], x, 0)
        loads: dict[str, Load] = {}
        for number, layer in enumerate(self.layers):
            own = None if past is None else past[number]
            x, load = layer(x, rotation, mask, real, kinds, own)
            if load is not None:
                loads[f"layers.{number}.ffn"] = load
        return Decoded(self.norm(x), loads)

    @staticmethod
    def _places(
        token: Int[Tensor, "batch seq"],
        known: int,
        document: Int[Tensor, "batch seq"] | None,
        keep: Bool[Tensor, "batch all"] | None,
    ) -> Int[Tensor, "batch seq"]:
        """Each token's place in its document."""
        if keep is None:
            place = torch.arange(known, known + token.shape[1], device=token.device)
            place = place.expand_as(token)
        else:
            place = (keep.long().cumsum(dim=1) - 1).clamp(min=0)[:, known:]
        if document is None:
            return place
        begins = F.pad(document.diff(dim=1) != 0, (1, 0))
        return place - torch.where(begins, place, 0).cummax(dim=1).values

    @staticmethod
    def _mask(
        seq: int,
        known: int,
        document: Int[Tensor, "batch seq"] | None,
        keep: Bool[Tensor, "batch all"] | None,
        device: torch.device,
    ) -> Bool[Tensor, "#batch 1 queries keys"] | None:
        """Who may look at whom; None where that is: at all before."""
        if not known and document is None and keep is None:
            return None
        mask = torch.ones(seq, known + seq, dtype=torch.bool, device=device).tril(known)[None, None]
        if document is not None:
            mask = mask & (document[:, None, :, None] == document[:, None, None, :])
        if keep is not None:
            # Padding sees itself, for a row of attention without any key is not a number.
            itself = mask.triu(known)
            mask = (mask & keep[:, None, None, :]) | itself
        return mask
