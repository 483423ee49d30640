"""Vision transformers of timm as teachers."""

from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.teachers.base import Teacher


class TimmTeacher(Teacher):
    """The last features that a vision transformer of timm has of every patch.

    Args:
        model: its name in timm, such as `vit_base_patch16_224.dino`.
        weights: a safetensors file with its weights, as timm or its authors name them.
        download: fetch the weights that timm knows instead; it then needs a network.
        image_size: of the images that it reads; None: its own. Positions are interpolated.
    """

    def __init__(
        self,
        model: str,
        weights: str | None = None,
        download: bool = False,
        image_size: int | None = None,
    ):
        super().__init__()
        if (weights is None) != download:
            raise ValueError(
                f"The teacher {model} gets its weights either from a file (`weights`) or, with "
                "`download: true`, from where timm has them: give one of both."
            )
        if not timm.is_model(model):
            raise ValueError(f"timm has no model called '{model}': see timm.list_models().")
        self.model, self.weights, self.size = model, weights, image_size

    def load(self) -> None:
        options: dict[str, Any] = {} if self.size is None else {"img_size": self.size}
        if self.weights is not None:
            if Path(self.weights).suffix != ".safetensors" or not Path(self.weights).is_file():
                raise ValueError(
                    f"There is no safetensors file at '{self.weights}' to load the teacher "
                    f"{self.model} from; other formats are not read."
                )
            options["pretrained_cfg_overlay"] = {"file": self.weights}
        try:  # with its classifier: without, timm would not insist on finding every weight
            net = timm.create_model(self.model, pretrained=True, **options)
        except (RuntimeError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"The teacher {self.model} cannot be made: {reason}") from error
        self.net = net.requires_grad_(False).eval()
        given: Any = net.pretrained_cfg
        self.mean, self.std = tuple(given["mean"]), tuple(given["std"])
        self.image_size = self.size or given["input_size"][-1]
        found = self.features(torch.zeros(1, 3, self.image_size, self.image_size))
        self.grid, self.feature_dim = round(found.shape[1] ** 0.5), found.shape[2]

    def features(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches features"]:
        return patch_features(self.net, image, self.model)


def patch_features(
    net: Any, image: Float[Tensor, "batch 3 height width"], name: str
) -> Float[Tensor, "batch patches features"]:
    """What a model of timm says of the patches, class and register tokens left out."""
    found: Tensor = net.forward_features(image)
    prefix: int = getattr(net, "num_prefix_tokens", 0)
    if found.ndim != 3 or round((found.shape[1] - prefix) ** 0.5) ** 2 != found.shape[1] - prefix:
        raise ValueError(
            f"{name} is no teacher: its features have the shape {tuple(found.shape)}, which is "
            "not one row for each patch of a square. Vision transformers are."
        )
    return found[:, prefix:]
