"""The codes of a trained tokenizer as what masked patches are predicted as."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.losses import Prediction, masked_cross_entropy
from mhmoe_mm.models.image_targets import ImageTarget
from mhmoe_mm.models.vqkd import VQKD
from mhmoe_mm.storage.exported import class_path, is_exported, read_exported
from mhmoe_mm.storage.sealed import read_sealed

NET = "net."
"""Begins the names of a tokenizer's weights in the task that trains it."""


class VQKDCodes(ImageTarget):
    """The number of every patch's code; cross-entropy.

    The tokenizer sees the whole image. Its weights travel with those of the network, without its
    decoder.

    Args:
        path: of a tokenizer that `tools.export` wrote, or a checkpoint file of `ImageTokenizer`.
        patch_size: of the network, in pixels; None: the tokenizer's. With another, images are
            resized for the tokenizer so that both see equally many patches.
    """

    def __init__(self, path: str, patch_size: int | None = None):
        super().__init__()
        self.tokenizer = read_tokenizer(path).without_decoder().requires_grad_(False).eval()
        self.patch_size = patch_size or self.tokenizer.patch_size
        self.size = self.tokenizer.num_codes

    def target(self, image: Float[Tensor, "batch 3 height width"]) -> Tensor:
        side, grid = self.patch_size * self.tokenizer.grid, self.tokenizer.grid
        if image.shape[-2:] != (side, side):
            raise ValueError(
                f"The tokenizer makes {grid}x{grid} codes, so with patches of {self.patch_size} "
                f"pixels it is for images of {side}x{side}, got {image.shape[-2]}x"
                f"{image.shape[-1]}: use a tokenizer for as many patches, or set view.size."
            )
        if side != self.tokenizer.image_size:
            size = (self.tokenizer.image_size,) * 2
            image = F.interpolate(image.float(), size, mode="bicubic", antialias=True)
        with torch.autocast(image.device.type, enabled=False):  # a code is a code
            return self.tokenizer.tokens(image.float())

    def predict(self, output: Float[Tensor, "rows size"], target: Tensor) -> Prediction:
        return masked_cross_entropy(output, target)

    def train(self, mode: bool = True) -> "VQKDCodes":
        """Nothing about a target is trained."""
        return super().train(False)


def read_tokenizer(path: str | Path) -> VQKD:
    """The tokenizer in an export or a checkpoint, on the CPU; nothing in it is run.

    Raises:
        ValueError: there is none, or it is something else, or its codes were never found.
    """
    file = Path(path)
    if not file.exists():
        raise ValueError(
            f"There is no image tokenizer at '{path}': train one (docs/image_tokenizers.md), or "
            "name another file."
        )
    if is_exported(file):
        content = read_exported(file)
    elif file.is_file():
        content = read_sealed(file, mmap=True)
    else:
        raise ValueError(
            f"{path} is a folder and no export: write one with `python -m tools.export`, or name "
            "one checkpoint file."
        )
    net = content.get("hyper_parameters", {}).get("net")
    if not isinstance(net, dict) or net.get("class_path") != class_path(VQKD):
        raise ValueError(
            f"{path} does not hold an image tokenizer: name an export or a checkpoint of the task "
            "ImageTokenizer."
        )
    return _built(net.get("init_args", {}), content["state_dict"], file)


def _built(shape: dict[str, Any], given: dict[str, Tensor], file: Path) -> VQKD:
    weights = {name.removeprefix(NET): w for name, w in given.items() if name.startswith(NET)}
    try:
        # The weights that it starts with are replaced: the caller's random numbers stay.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            tokenizer = VQKD(**shape)
        tokenizer.load_state_dict(weights)
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"The tokenizer in {file} cannot be built here: {reason}") from error
    if not tokenizer.codebook.is_started:
        raise ValueError(f"The tokenizer in {file} has no codes yet: it was not trained.")
    return tokenizer
