"""Images to the size of the net: uint8 throughout, every draw from the sample's own generator."""

import math
import random
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as V

from datamodules.augment import RandAugment
from datamodules.augment_images import Erasing, ImageRandAugment
from datamodules.reading import EncodedImage
from mhmoe_mm.inputs.pixels import resize

ATTEMPTS = 10
Box = tuple[int, int, int, int]
"""(top, left, height, width) of a part of an image, in pixels."""


@dataclass(frozen=True)
class View:
    """How an image is seen.

    Args:
        size: height and width of the net's input, in pixels.
        patch: height and width of a patch; divides `size`.
        scale: share of the image's area that a training crop covers, at least and at most.
        ratio: width by height of a training crop, at least and at most.
        flip: chance of a left-right flip; 0 because captions speak of left and right.
        jitter: strength of the change of brightness, contrast and saturation in training; 0 is off.
        augment: random changes of colour and geometry in training; None is off.
        erase: noise in place of a part of the image in training; None is off.
        center_crop: an evaluation sees the central square, and not the whole image squeezed.
        reduce: in training, decode JPEGs at a half, a quarter or an eighth where the crop still has
            `size` pixels a side: faster with large images, and not quite the same pixels.
    """

    size: int = 224
    patch: int = 16
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    jitter: float = 0.0
    augment: RandAugment | ImageRandAugment | None = None
    erase: Erasing | None = None
    center_crop: bool = False
    reduce: bool = False

    def __post_init__(self):
        if self.size < 1 or self.patch < 1 or self.size % self.patch:
            raise ValueError(
                f"view.size must be a multiple of view.patch, got {self.size} and {self.patch}."
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"view.scale must rise within (0, 1], got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"view.ratio must rise from above 0, got {self.ratio}.")
        if not 0 <= self.flip <= 1 or not 0 <= self.jitter <= 1:
            raise ValueError(
                f"view.flip and view.jitter must lie in [0, 1], got {self.flip} and {self.jitter}."
            )

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.size // self.patch

    def check_net(self, net: Any) -> None:
        """Raise ValueError where a net reads images of another size."""
        size = getattr(getattr(net, "image_embedding", net), "image_size", self.size)
        if size != self.size:
            raise ValueError(
                f"view.size is {self.size}, but the net reads images of image_size={size}: give "
                "both the same."
            )


def seen(image: EncodedImage, view: View, training: bool, choice: random.Random) -> Tensor:
    """The image as the net gets it."""
    if not training:
        return evaluation_view(image.pixels(), view)
    box = random_crop(image.header.height, image.header.width, view, choice)
    reduction = reduction_of(box, view.size) if view.reduce and image.header.plain else 1
    return changed(image.pixels(reduction), reduced(box, reduction), view, choice)


def training_view(image: Tensor, view: View, choice: random.Random) -> Tensor:
    """A random crop of uint8 (3 height width), resized to the view, maybe flipped, jittered,
    augmented and erased in part.
    """
    return changed(image, random_crop(image.shape[1], image.shape[2], view, choice), view, choice)


def reduction_of(box: Box, size: int) -> int:
    """Of 8, 4, 2 and 1 the largest by which a crop's sides can be divided and still have `size`."""
    return next((by for by in (8, 4, 2) if min(box[2:]) // by >= size), 1)


def reduced(box: Box, by: int) -> Box:
    """The same part of an image that was decoded smaller, to the nearest pixels."""
    top, left, height, width = box
    bottom, right = round((top + height) / by), round((left + width) / by)
    top, left = round(top / by), round(left / by)
    return top, left, bottom - top, right - left


def changed(image: Tensor, box: Box, view: View, choice: random.Random) -> Tensor:
    """`training_view` with a crop that is drawn already."""
    top, left, height, width = box
    image = resize(image[:, top : top + height, left : left + width], view.size)
    if choice.random() < view.flip:
        image = image.flip(2)
    if view.jitter:
        image = jitter(image, view.jitter, choice)
    if view.augment:
        image = view.augment(image, choice)
    return view.erase(image, choice) if view.erase else image


def evaluation_view(image: Tensor, view: View) -> Tensor:
    """The whole image, squeezed to the view: no part of what a caption names is cut off. Its
    central square if the view says so.
    """
    if view.center_crop:
        height, width = image.shape[1:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        image = image[:, top : top + side, left : left + side]
    return resize(image, view.size)


def random_crop(height: int, width: int, view: View, choice: random.Random) -> Box:
    """(top, left, height, width) of a crop of random area and shape inside the image.

    When the image is too long for the shapes allowed, the largest central crop that has one.
    """
    low, high = math.log(view.ratio[0]), math.log(view.ratio[1])
    for _ in range(ATTEMPTS):
        area = height * width * choice.uniform(*view.scale)
        aspect = math.exp(choice.uniform(low, high))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            return choice.randint(0, height - tall), choice.randint(0, width - wide), tall, wide
    aspect = min(max(width / height, view.ratio[0]), view.ratio[1])
    tall = max(1, min(height, round(width / aspect)))
    wide = max(1, min(width, round(height * aspect)))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def jitter(image: Tensor, strength: float, choice: random.Random) -> Tensor:
    """Brightness, contrast and saturation each scaled by 1 +- strength, in random order."""
    changes = [V.adjust_brightness, V.adjust_contrast, V.adjust_saturation]
    for change in choice.sample(changes, len(changes)):
        image = change(image, choice.uniform(1 - strength, 1 + strength))
    return image
