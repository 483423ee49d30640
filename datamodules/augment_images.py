"""Augmentation of images that have a class and no text: RandAugment with more operations, erasing.

What an image shows is all that counts here, not its colours nor where things are. Source: the
released fine-tuning of BEiT-3 on ImageNet, which takes `rand-m9-mstd0.5-inc1` and the erasing of
timm (https://github.com/huggingface/pytorch-image-models); here on uint8, each draw the sample's
own.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from datamodules.augment import MAX_LEVEL, MAX_SHEAR, moved

ATTEMPTS = 10
NOISE_MEAN, NOISE_STD = 115.0, 57.0
"""Of natural images, about."""


@dataclass(frozen=True)
class ImageRandAugment:
    """Some random changes of an image, of random strength; a stronger one changes more.

    Args:
        spread: standard deviation of the strength about `level`.
        ops: how many are drawn, each anew from all there are.
        level: how strong they are, up to 10: at 9 a rotation by 27 degrees.
        chance: of each drawn change to be made.
    """

    spread: float
    ops: int = 2
    level: float = 9.0
    chance: float = 0.5

    def __post_init__(self):
        in_range = 0 <= self.level <= MAX_LEVEL and 0 <= self.chance <= 1
        if self.ops < 1 or self.spread < 0 or not in_range:
            raise ValueError(
                "view.augment needs ops of at least 1, level in [0, 10], spread of at least 0 and "
                f"chance in [0, 1], got {self.ops}, {self.level}, {self.spread} and {self.chance}."
            )

    def __call__(self, image: Tensor, choice: random.Random) -> Tensor:
        """uint8 (3 height width) to the same."""
        for _ in range(self.ops):
            change = choice.choice(CHANGES)
            level = min(max(choice.gauss(self.level, self.spread), 0), MAX_LEVEL)
            sign = choice.choice((-1, 1))
            if choice.random() < self.chance:
                image = change(image, level / MAX_LEVEL, sign)
        return image


def _solarize(image: Tensor, share: float) -> Tensor:
    """The brightest values turned over; at a share of 1 all of them."""
    return torch.where(image.int() >= 256 - int(256 * share), 255 - image, image)


def _solarize_add(image: Tensor, share: float) -> Tensor:
    """The darker half of the values made brighter."""
    brighter = (image.int() + int(110 * share)).clamp(max=255).to(torch.uint8)
    return torch.where(image < 128, brighter, image)


def _factor(share: float, sign: int) -> float:
    """Of an enhancement, which is none at 1."""
    return max(0.1, 1 + sign * 0.9 * share)


MAX_SHIFT = 0.45  # of the image's side
CHANGES: tuple[Callable[[Tensor, float, int], Tensor], ...] = (
    lambda image, share, sign: V.autocontrast(image),
    lambda image, share, sign: V.equalize(image),
    lambda image, share, sign: V.invert(image),
    lambda image, share, sign: V.posterize(image, 4 - int(4 * share)),
    lambda image, share, sign: _solarize(image, share),
    lambda image, share, sign: _solarize_add(image, share),
    lambda image, share, sign: V.adjust_saturation(image, _factor(share, sign)),
    lambda image, share, sign: V.adjust_contrast(image, _factor(share, sign)),
    lambda image, share, sign: V.adjust_brightness(image, _factor(share, sign)),
    lambda image, share, sign: V.adjust_sharpness(image, _factor(share, sign)),
    lambda image, share, sign: moved(image, sign, angle=30.0 * share),
    lambda image, share, sign: moved(image, sign, shear=(MAX_SHEAR * share, 0.0)),
    lambda image, share, sign: moved(image, sign, shear=(0.0, MAX_SHEAR * share)),
    lambda image, share, sign: moved(image, sign, shift=(MAX_SHIFT * share * image.shape[2], 0.0)),
    lambda image, share, sign: moved(image, sign, shift=(0.0, MAX_SHIFT * share * image.shape[1])),
)


@dataclass(frozen=True)
class Erasing:
    """Noise in place of a random rectangle (https://arxiv.org/abs/1708.04896).

    Args:
        chance: of an image to lose a part.
        area: share of the image that the rectangle covers, at least and at most.
        ratio: its height by its width, at least and at most.
    """

    chance: float
    area: tuple[float, float] = (0.02, 1 / 3)
    ratio: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self):
        low, high = self.area
        if not 0 <= self.chance <= 1 or not 0 < low <= high < 1:
            raise ValueError(
                "view.erase needs chance in [0, 1] and area rising within (0, 1), got "
                f"{self.chance} and {self.area}."
            )
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"view.erase.ratio must rise from above 0, got {self.ratio}.")

    def __call__(self, image: Tensor, choice: random.Random) -> Tensor:
        """uint8 (3 height width) to the same."""
        if choice.random() >= self.chance:
            return image
        height, width = image.shape[1:]
        for _ in range(ATTEMPTS):
            area = height * width * choice.uniform(*self.area)
            aspect = math.exp(choice.uniform(*map(math.log, self.ratio)))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < tall < height and 0 < wide < width:
                top, left = choice.randint(0, height - tall), choice.randint(0, width - wide)
                own = torch.Generator().manual_seed(choice.getrandbits(63))
                noise = torch.randn(3, tall, wide, generator=own) * NOISE_STD + NOISE_MEAN
                image = image.clone()
                image[:, top : top + tall, left : left + wide] = noise.clamp(0, 255).byte()
                return image
        return image
