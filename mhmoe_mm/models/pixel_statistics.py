"""Means and deviations of colours that networks of other people were trained with.

Images come as the networks here read them, `(value - 0.5) / 0.5`; one that was trained with other
numbers turns them into its own.
"""

import torch
from jaxtyping import Float
from torch import Tensor

STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""By name: mean and standard deviation of red, green and blue, of values in [0, 1]. "half" are
ours and those of BEiT."""

Numbers = tuple[float, ...]


def statistics(name: str) -> tuple[Numbers, Numbers]:
    """Mean and deviation by name; ValueError for one that is not known."""
    if name not in STATISTICS:
        known = ", ".join(STATISTICS)
        raise ValueError(f"There are no colour statistics called '{name}': choose from {known}.")
    return STATISTICS[name]


def renormalized(
    image: Float[Tensor, "batch 3 height width"], mean: Numbers, std: Numbers
) -> Float[Tensor, "batch 3 height width"]:
    """An image as the networks here read it, with another mean and deviation."""
    if (tuple(mean), tuple(std)) == STATISTICS["half"]:
        return image
    shift, scale = (torch.tensor(n, device=image.device)[:, None, None] for n in (mean, std))
    return ((image.float() + 1) / 2 - shift) / scale
