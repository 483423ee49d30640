"""RandAugment (https://arxiv.org/abs/1909.13719) with the operations of BEiT-3's fine-tuning.

None of them flips the image or cuts a part out: texts speak of left and right, and of what is
there. torchvision's own class draws from the global generator, which threads share; here every draw
is the sample's own, and torchvision's functions do the work on uint8.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

MAX_LEVEL = 10
FILL = [128.0]
BILINEAR = InterpolationMode.BILINEAR


@dataclass(frozen=True)
class RandAugment:
    """Some random changes of an image.

    Args:
        ops: how many are drawn, each anew from all there are.
        level: how strong they are, up to 10: at 7 a rotation by 21 degrees, a shift by 7 pixels.
        chance: of each drawn change to be made.
    """

    ops: int = 2
    level: float = 7.0
    chance: float = 0.5

    def __post_init__(self):
        if self.ops < 1 or not 0 <= self.level <= MAX_LEVEL or not 0 <= self.chance <= 1:
            raise ValueError(
                "view.augment needs ops of at least 1, level in [0, 10] and chance in [0, 1], got "
                f"{self.ops}, {self.level} and {self.chance}."
            )

    def __call__(self, image: Tensor, choice: random.Random) -> Tensor:
        """uint8 (3 height width) to the same."""
        for _ in range(self.ops):
            change = choice.choice(CHANGES)
            sign = choice.choice((-1, 1))
            if choice.random() < self.chance:
                image = change(image, self.level / MAX_LEVEL, sign)
        return image


def moved(image: Tensor, sign: int, angle=0.0, shift=(0.0, 0.0), shear=(0.0, 0.0)) -> Tensor:
    """Turned by degrees, shifted by pixels, sheared by degrees; grey where nothing was."""
    return V.affine(
        image,
        angle=sign * angle,
        translate=[sign * part for part in shift],
        scale=1.0,
        shear=[sign * part for part in shear],
        interpolation=BILINEAR,
        fill=FILL,
    )


MAX_SHEAR = 16.7  # degrees: a slant of 0.3 pixels a pixel
CHANGES: tuple[Callable[[Tensor, float, int], Tensor], ...] = (
    lambda image, share, sign: image,
    lambda image, share, sign: V.autocontrast(image),
    lambda image, share, sign: V.equalize(image),
    lambda image, share, sign: V.adjust_brightness(image, 0.1 + 1.8 * share),
    lambda image, share, sign: V.adjust_sharpness(image, 0.1 + 1.8 * share),
    lambda image, share, sign: moved(image, sign, shear=(MAX_SHEAR * share, 0.0)),
    lambda image, share, sign: moved(image, sign, shear=(0.0, MAX_SHEAR * share)),
    lambda image, share, sign: moved(image, sign, shift=(10.0 * share, 0.0)),
    lambda image, share, sign: moved(image, sign, shift=(0.0, 10.0 * share)),
    lambda image, share, sign: moved(image, sign, angle=30.0 * share),
)
