"""The multiway encoder in the manner of BEiT-3: one network for images, texts and image-text pairs.

    image -> patches, positions -+
                                 +-> [image ; text] -> block -> ... -> block -> norm -> hidden
    text  -> tokens, positions --+                       |               |
                                                         v               v
                                                       loads           loads

Source: https://arxiv.org/abs/2208.10442; `multiway.py` tells the paper's network from the released
ones.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mhmoe_mm.models.embeddings import ImageEmbedding, TextEmbedding
from mhmoe_mm.models.multiway import Layout
from mhmoe_mm.moe.routing import Kinds, Load

KINDS = ("image", "text")


class Encoded(NamedTuple):
    """What the encoder makes of its input."""

    hidden: Float[Tensor, "batch seq dim"]
    """Image tokens, then text tokens; at padding a finite number that means nothing."""
    split: int
    """Number of image tokens in front (patches + 1 for the class token), 0 without an image."""
    loads: dict[str, Load]
    """The load of every sparse layer that took part, by its module path in the network."""


class BEiT3(nn.Module):
    """A multiway encoder; its `layout` says what its layers are made of.

    `drop_path` is the last layer's rate; the rates grow linearly from 0.
    """

    def __init__(
        self,
        layout: Layout,
        image_size: int = 224,
        patch_size: int = 16,
        vocab_size: int = 64010,
        dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        max_text: int = 1022,
        drop_path: float = 0.0,
        normalize_output: bool = True,
    ):
        super().__init__()
        self.dim, self.vocab_size = dim, vocab_size
        self.image_embedding = ImageEmbedding(image_size, patch_size, dim)
        self.text_embedding = TextEmbedding(vocab_size, max_text, dim)
        rates = torch.linspace(0, drop_path, num_layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            layout.block(layer, num_layers, dim, num_heads, rate)
            for layer, rate in enumerate(rates)
        )
        self.norm = layout.final_norm(dim) if normalize_output else None

    def forward(
        self,
        image: Float[Tensor, "batch 3 height width"] | None,
        text: Int[Tensor, "batch_text seq_text"] | None,
        pad: Bool[Tensor, "batch_pad seq_pad"] | None = None,
        masked: Bool[Tensor, "batch_masked patches"] | None = None,
    ) -> Encoded:
        """Encode images, texts or pairs.

        Args:
            image: normalised pixels, or None for texts alone.
            text: token ids below `vocab_size`, or None for images alone.
            pad: true where `text` is padding, which no token looks at and no expert receives;
                None where there is none.
            masked: true where the network must not see the patch; None to see all.

        Raises:
            ValueError: an input is missing, or does not fit the network or the other inputs.
        """
        check_together(image, text, pad, masked)
        parts = []
        if image is not None:
            parts.append(self.image_embedding(image, masked))
        split = parts[0].shape[1] if parts else 0
        if text is not None:
            parts.append(self.text_embedding(text))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

        batch, seq, _ = x.shape
        keep, mask = None, None
        if pad is not None:
            keep = torch.cat([pad.new_ones(batch, split), ~pad], dim=1)
            mask = keep[:, None, None, :]
            x = torch.where(keep[..., None], x, 0)
        is_text = torch.arange(seq, device=x.device) >= split
        kinds = Kinds(is_text.long().expand(batch, seq), KINDS)

        loads = {}
        for layer, block in enumerate(self.blocks):
            x, block_loads = block(x, split, mask, keep, kinds)
            loads |= {f"blocks.{layer}.ffn.{branch}": load for branch, load in block_loads.items()}
        return Encoded(x if self.norm is None else self.norm(x, split), split, loads)


def check_together(
    image: Tensor | None, text: Tensor | None, pad: Tensor | None, masked: Tensor | None
) -> None:
    """Refuse inputs that do not go together; the embeddings check each against the network."""
    if image is None and text is None:
        raise ValueError("The network needs an image, a text or both, got neither.")
    if image is None and masked is not None:
        raise ValueError("`masked` marks patches of an image, and no image was given.")
    if text is None and pad is not None:
        raise ValueError("`pad` marks padding of a text, and no text was given.")
    if image is not None and text is not None and len(image) != len(text):
        raise ValueError(
            f"A pair is one image and one text, got {len(image)} images and {len(text)} texts."
        )
    if text is not None and pad is not None:
        if pad.shape != text.shape:
            raise ValueError(
                f"`pad` has one value per token, so the shape {tuple(text.shape)} of the text, "
                f"got {tuple(pad.shape)}."
            )
        if pad.dtype != torch.bool:
            raise ValueError(
                f"`pad` is a bool, true at padding, got {pad.dtype}: use `pad.bool()`."
            )
