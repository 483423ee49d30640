"""The multiway encoder in the manner of BEiT-3: one network for images, texts and image-text pairs.

    image -> patches, positions -+
                                 +-> [image ; text] -> block -> ... -> block -> norm -> hidden
    text  -> tokens, positions --+                       |               |
                                                         v               v
                                                       loads           loads

Source: https://arxiv.org/abs/2208.10442; `multiway.py` tells the paper's network from the released
ones.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mhmoe_mm.models.attention import Past
from mhmoe_mm.models.block import Reading
from mhmoe_mm.models.embeddings import ImageEmbedding, TextEmbedding
from mhmoe_mm.models.multiway import Layout
from mhmoe_mm.models.parts import part
from mhmoe_mm.models.start import UnitStart
from mhmoe_mm.moe.routing import Kinds, Load

KINDS = ("image", "text")


class MultiwayInput(NamedTuple):
    """What the encoder reads as one sequence: images, texts or pairs, a batch of each."""

    image: Float[Tensor, "batch 3 height width"] | None = None
    """Normalised pixels, or None for texts alone."""
    text: Int[Tensor, "batch_text seq_text"] | None = None
    """Token ids below `vocab_size`, or None for images alone."""
    pad: Bool[Tensor, "batch_pad seq_pad"] | None = None
    """True where `text` is padding, which no token looks at and no expert receives; None where
    there is none."""
    masked: Bool[Tensor, "batch_masked patches"] | None = None
    """True where the network must not see the patch; None to see all."""
    visible: Bool[Tensor, "queries keys"] | None = None
    """True where a token of the whole sequence (first axis) may look at another (second); None:
    everywhere."""


class Encoded(NamedTuple):
    """What the encoder makes of its input."""

    hidden: Float[Tensor, "batch seq dim"]
    """Image tokens, then text tokens; at padding a finite number that means nothing."""
    split: int
    """Number of image tokens in front (patches + 1 for the class token), 0 without an image."""
    loads: dict[str, Load]
    """The load of every sparse layer that took part, by its module path in the network."""


Before = Callable[[nn.Module, tuple[MultiwayInput, ...]], None]
After = Callable[[nn.Module, tuple[MultiwayInput, ...], list[Encoded]], None]


class BEiT3(nn.Module):
    """A multiway encoder; its `layout` says what its layers are made of.

    Args:
        layout: what the layers are made of, and what image and text share.
        image_size, patch_size: in pixels; the first is a multiple of the second.
        vocab_size: tokens of the text vocabulary.
        dim, num_layers, num_heads: width, depth, heads of the attention.
        max_text: longest text, in tokens.
        drop_path: the last layer's rate; the rates grow linearly from 0.
        normalize_output: whether a norm follows the last layer.
        start: fills the weights of the new network; None: every module starts small by itself.
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
        start: UnitStart | None = None,
    ):
        super().__init__()
        self.dim, self.vocab_size = dim, vocab_size
        self.image_embedding = ImageEmbedding(image_size, patch_size, dim)
        self.text_embedding = TextEmbedding(vocab_size, max_text, dim)
        rates = torch.linspace(0, drop_path, num_layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            part(layout.block(layer, num_layers, dim, num_heads, rate))
            for layer, rate in enumerate(rates)
        )
        self.norm = layout.final_norm(dim) if normalize_output else None
        self._together_hooks: OrderedDict[int, tuple[Before, After]] = OrderedDict()
        if start is not None:
            start(self)

    def forward(
        self,
        image: Float[Tensor, "batch 3 height width"] | None,
        text: Int[Tensor, "batch_text seq_text"] | None,
        pad: Bool[Tensor, "batch_pad seq_pad"] | None = None,
        masked: Bool[Tensor, "batch_masked patches"] | None = None,
        visible: Bool[Tensor, "queries keys"] | None = None,
        past: list[Past] | None = None,
    ) -> Encoded:
        """Encode images, texts or pairs.

        Args:
            image, text, pad, masked, visible: as in `MultiwayInput`.
            past: one for every block; each takes up the keys and values of what its block reads,
                and `read_on` goes on from there.

        Raises:
            ValueError: an input is missing, or does not fit the network or the other inputs.
        """
        sequence = self._embedded(MultiwayInput(image, text, pad, masked, visible))
        (encoded,) = self._through_blocks([sequence], past)
        return encoded

    def together(self, *sequences: MultiwayInput) -> list[Encoded]:
        """Encode several batches in one pass, as one `forward` after the other would: attention
        stays within a sequence, but every feed-forward net or sparse layer runs once, over the
        tokens of all. A router that looks at other tokens (a capacity, expert choice) looks at all.

        Returns:
            One for each, in order. Loads are sums over all and with the first; others have none.

        Raises:
            ValueError: as `forward`.
        """
        for before, _ in self._together_hooks.values():
            before(self, sequences)
        encoded = self._through_blocks([self._embedded(one) for one in sequences], None)
        for _, after in self._together_hooks.values():
            after(self, sequences, encoded)
        return encoded

    def register_together_hooks(self, before: Before, after: After) -> RemovableHandle:
        """Have `together` call these, as torch's hooks of `forward` are called, until `remove()` of
        what is returned.
        """
        handle = RemovableHandle(self._together_hooks)
        self._together_hooks[handle.id] = before, after
        return handle

    def read_on(
        self, text: Int[Tensor, "batch seq_text"], start: int, past: list[Past]
    ) -> Float[Tensor, "batch seq_text dim"]:
        """Encode further tokens of pairs; each looks at all of `past`, itself and those before it.

        Args:
            text: the tokens; the first is number `start` of its text, counted from 0.
            past: what every block has read, from `forward` and earlier calls; this call adds to
                each a filler and the tokens, in this order.
        """
        batch, new = text.shape
        x = self.text_embedding(text, start)
        # That the tokens belong to a pair, branches see from an image in front of them: a filler
        # stands for it, which nothing looks at and no expert receives.
        x = torch.cat([x.new_zeros(batch, 1, self.dim), x], dim=1)
        assert past[0].key is not None
        known = past[0].key.shape[2]
        mask = torch.ones(1 + new, known + 1 + new, dtype=torch.bool, device=x.device)
        mask = mask.tril(known)
        mask[:, known] = False
        keep = (torch.arange(1 + new, device=x.device) > 0).expand(batch, -1)
        (encoded,) = self._through_blocks([(x, _reading(x, 1, mask[None, None], keep))], past)
        return encoded.hidden[:, 1:]

    def _embedded(self, read: MultiwayInput) -> tuple[Tensor, Reading]:
        """The tokens (batch seq dim) that the first block reads, and how."""
        check_together(read)
        parts = []
        if read.image is not None:
            parts.append(self.image_embedding(read.image, read.masked))
        split = parts[0].shape[1] if parts else 0
        if read.text is not None:
            parts.append(self.text_embedding(read.text))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

        keep, mask, pad = None, None, read.pad
        if pad is not None:
            keep = torch.cat([pad.new_ones(pad.shape[0], split), ~pad], dim=1)
            mask = keep[:, None, None, :]
            x = torch.where(keep[..., None], x, 0)
        if read.visible is not None:
            mask = read.visible[None, None] if mask is None else read.visible & mask
        return x, _reading(x, split, mask, keep)

    def _through_blocks(
        self, sequences: list[tuple[Tensor, Reading]], past: list[Past] | None
    ) -> list[Encoded]:
        """`past` goes with the first of them."""
        hidden, readings = [x for x, _ in sequences], [how for _, how in sequences]
        loads = {}
        for layer, block in enumerate(self.blocks):
            if past is not None:
                readings[0] = readings[0]._replace(past=past[layer])
            hidden, block_loads = block(hidden, readings)
            loads |= {f"blocks.{layer}.ffn.{branch}": load for branch, load in block_loads.items()}
        splits = [how.split for how in readings]
        if self.norm is not None:
            hidden = [self.norm(x, split) for x, split in zip(hidden, splits, strict=True)]
        shares = [loads, *({} for _ in hidden[1:])]
        return [Encoded(*each) for each in zip(hidden, splits, shares, strict=True)]


def _reading(x: Tensor, split: int, mask: Tensor | None, keep: Tensor | None) -> Reading:
    is_text = torch.arange(x.shape[1], device=x.device) >= split
    return Reading(split, mask, keep, Kinds(is_text.long().expand(x.shape[:2]), KINDS))


# Sizes are read from shapes here and not by len(), which would fix them where a graph is traced.
def check_together(read: MultiwayInput) -> None:
    """Refuse inputs that do not go together; the embeddings check each against the network."""
    image, text, pad, masked, _ = read
    if image is None and text is None:
        raise ValueError("The network needs an image, a text or both, got neither.")
    if image is None and masked is not None:
        raise ValueError("`masked` marks patches of an image, and no image was given.")
    if text is None and pad is not None:
        raise ValueError("`pad` marks padding of a text, and no text was given.")
    if image is not None and text is not None and image.shape[0] != text.shape[0]:
        raise ValueError(
            f"A pair is one image and one text, got {image.shape[0]} images and "
            f"{text.shape[0]} texts."
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
