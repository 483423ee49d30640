"""Pixels to the size of the net and into a batch; uint8 throughout."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(image: Tensor, size: int) -> Tensor:
    """uint8 (3 height width) to (3 size size), bicubic with antialiasing, in integer arithmetic."""
    if image.shape[1:] == (size, size):
        return image
    # The batch axis is added in the decoder's memory order (channels last). Added in front it hides
    # that order from the kernel, which then takes half as long again.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=(size, size), mode="bicubic", antialias=True)[0]


def stack_pixels(pixels: list[Tensor]) -> Tensor:
    """Images as one tensor (batch 3 height width), in memory channels last as the decoders leave
    them: turning them costs more.
    """
    return torch.stack([pixel.permute(1, 2, 0) for pixel in pixels]).permute(0, 3, 1, 2)
