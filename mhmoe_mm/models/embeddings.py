"""From pixels and token ids to vectors with positions.

Position tables begin with two rows that nothing reads, and an image's third row is the class
token's: the shape of the released models' tables.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mhmoe_mm.models.init import start_small

UNUSED_ROWS = 2
"""Rows at the start of every position table that nothing reads."""


class ImageEmbedding(nn.Module):
    """A class token, then the patches row by row; a masked one is the mask token at its place."""

    def __init__(self, image_size: int, patch_size: int, dim: int):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"Images of {image_size}x{image_size} pixels do not divide into patches of "
                f"{patch_size}x{patch_size}: choose image_size as a multiple of patch_size."
            )
        self.image_size = image_size
        self.num_patches = (image_size // patch_size) ** 2
        self.patch = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)
        self.cls = nn.Parameter(torch.empty(1, 1, dim))
        self.mask = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(UNUSED_ROWS + 1 + self.num_patches, dim))
        for weight in (self.patch.weight, self.cls, self.mask, self.position):
            start_small(weight)
        assert self.patch.bias is not None
        nn.init.zeros_(self.patch.bias)

    def forward(
        self,
        image: Float[Tensor, "batch 3 height width"],
        masked: Bool[Tensor, "batch_masked patches"] | None = None,
    ) -> Float[Tensor, "batch seq dim"]:
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"Images have the shape (batch, 3, height, width), got {tuple(image.shape)}."
            )
        batch, _, height, width = image.shape
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"The network reads images of {self.image_size}x{self.image_size} pixels, "
                f"got {height}x{width}: resize them, or build the network with that image_size."
            )
        x = rearrange(self.patch(image), "b d h w -> b (h w) d")
        if masked is not None:
            if masked.shape != (batch, self.num_patches):
                raise ValueError(
                    f"`masked` has one value per image and patch, so its shape is "
                    f"({batch}, {self.num_patches}), got {tuple(masked.shape)}."
                )
            if masked.dtype != torch.bool:
                raise ValueError(
                    f"`masked` is a bool, true where masked, got {masked.dtype}: use masked.bool()."
                )
            x = torch.where(masked[..., None], self.mask, x)
        cls = self.cls.expand(batch, -1, -1)
        return torch.cat([cls, x], dim=1) + self.position[UNUSED_ROWS:]


class TextEmbedding(nn.Module):
    """One vector per token.

    Ids are not compared with `vocab_size`, which would make a GPU wait: one outside of it is an
    error of the lookup itself, and on a GPU a late one.
    """

    def __init__(self, vocab_size: int, max_text: int, dim: int):
        super().__init__()
        self.max_text = max_text
        self.token = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.empty(UNUSED_ROWS + max_text, dim))
        for weight in (self.token.weight, self.position):
            start_small(weight)

    def forward(
        self, text: Int[Tensor, "batch seq"], start: int = 0
    ) -> Float[Tensor, "batch seq dim"]:
        """Embed tokens of which the first is number `start` of its text."""
        end = start + text.shape[1]
        if end > self.max_text:
            raise ValueError(
                f"The network reads texts of at most {self.max_text} tokens, got {end}: "
                "cut the texts, or build the network with a longer max_text."
            )
        return self.token(text) + self.position[UNUSED_ROWS + start : UNUSED_ROWS + end]
