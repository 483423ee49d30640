"""What a teacher is."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mhmoe_mm.models.pixel_statistics import STATISTICS, Numbers, renormalized


class Teacher(nn.Module, ABC):
    """A frozen network that has something to say of every patch. Abstract.

    It is made without weights, which `load` reads, so that a configuration can be looked at where
    they are not. Once loaded it knows its sizes.
    """

    image_size: int
    """Height and width of the images that it reads, in pixels."""
    grid: int
    """Patches along a side."""
    feature_dim: int
    """Features of a patch."""
    mean: Numbers = STATISTICS["half"][0]
    std: Numbers = STATISTICS["half"][1]

    @abstractmethod
    def load(self) -> None:
        """Read the weights.

        Raises:
            ValueError: there are none, or they are not those of such a network.
        """

    @abstractmethod
    def features(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches features"]:
        """Of images as the teacher reads them, row-major over the grid."""

    @torch.no_grad()
    def forward(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches features"]:
        """Of images of any size, normalised as for every network here."""
        image = renormalized(image.float(), self.mean, self.std)
        if image.shape[-2:] != (self.image_size, self.image_size):
            image = F.interpolate(image, self.image_size, mode="bicubic", antialias=True)
        return self.features(image)

    def train(self, mode: bool = True) -> "Teacher":
        """Nothing about a teacher is trained."""
        return super().train(False)
