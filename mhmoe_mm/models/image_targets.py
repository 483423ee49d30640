"""What a masked patch is predicted as: the interface of image tokenizers, and two simple ones.

A target reads the unmasked image. `NormalizedPixels` needs nothing; `PatchCodebook` needs a small
file built from the data; `vqkd_codes.py` has the codes of a learned tokenizer.
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mhmoe_mm.losses import Prediction, masked_cross_entropy


class ImageTarget(nn.Module, ABC):
    """Makes the target of every patch and judges predictions of it. Abstract."""

    patch_size: int
    size: int
    """Features that the head must predict per patch."""

    @abstractmethod
    def target(self, image: Float[Tensor, "batch 3 height width"]) -> Tensor:
        """The target of every patch, (batch patches ...), row-major over the grid."""

    @abstractmethod
    def predict(self, output: Float[Tensor, "rows size"], target: Tensor) -> Prediction:
        """Loss and score of the head's output for some patches, given their targets."""

    def patches(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches pixels"]:
        """The image cut into patches, each flattened by channel, row, column."""
        size = self.patch_size
        return rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=size, q=size)


class NormalizedPixels(ImageTarget):
    """The patch's own pixels, normalised to mean 0 and variance 1 within the patch; squared error.

    A loss of 1 is what predicting the patch's mean everywhere costs.
    Source: https://arxiv.org/abs/2111.06377.
    """

    def __init__(self, patch_size: int = 16, eps: float = 1e-6):
        super().__init__()
        self.patch_size, self.size, self.eps = patch_size, 3 * patch_size**2, eps

    def target(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches pixels"]:
        patch = self.patches(image.float())
        return F.layer_norm(patch, patch.shape[-1:], eps=self.eps)

    def predict(self, output: Float[Tensor, "rows size"], target: Tensor) -> Prediction:
        predicted = torch.tensor(len(output), device=output.device)
        error = (output.float() - target).square().mean(dim=1).sum()
        return Prediction(error / predicted.clamp(min=1), None, predicted)


class PatchCodebook(ImageTarget):
    """The number of the nearest patch in a codebook built from the data; cross-entropy.

    The file comes from `python -m tools.build_codebook`; the codes travel with the weights.
    """

    code: Tensor

    def __init__(self, path: str):
        super().__init__()
        if not Path(path).is_file():
            raise ValueError(
                f"There is no codebook at '{path}'; build it with `python -m tools.build_codebook`."
            )
        try:
            with safe_open(path, "pt") as file:
                code, self.patch_size = file.get_tensor("code"), int(file.metadata()["patch_size"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is not a codebook of image patches: {error}.") from error
        if code.shape[1] != 3 * self.patch_size**2:
            raise ValueError(
                f"The codes in '{path}' have {code.shape[1]} values, but patches of "
                f"{self.patch_size} pixels have {3 * self.patch_size**2}."
            )
        self.size = len(code)
        self.register_buffer("code", code.float())

    def target(self, image: Float[Tensor, "batch 3 height width"]) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            patch, code = self.patches(image.float()), self.code.float()
            # |patch - code|^2 without the patch's own length, which is the same for every code
            return (code.square().sum(dim=1) - 2 * patch @ code.T).argmin(dim=-1)

    def predict(self, output: Float[Tensor, "rows size"], target: Tensor) -> Prediction:
        return masked_cross_entropy(output, target)
