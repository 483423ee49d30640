"""The names and shapes of the released BEiT-3 models, and weights drawn for them."""

import json
from pathlib import Path

import torch
from torch import Tensor

CONTENT = json.loads((Path(__file__).parent / "released_beit3.json").read_text())
MODELS = [(size, model) for size, content in CONTENT.items() for model in content["models"]]
DIM = 6
"""The width that drawn weights have instead of the released one."""


def shapes(size: str, model: str) -> dict[str, list[int]]:
    """The shape of every tensor of a released model."""
    content = CONTENT[size]
    layers = {
        f"beit3.encoder.layers.{layer}.{name}": shape
        for layer in range(content["layers"])
        for name, shape in content["layer"].items()
    }
    return content["common"] | content["models"][model] | layers


def drawn(size: str, model: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights of every name, where widths are those of `DIM` and vocabularies are small."""
    draw, full = torch.Generator().manual_seed(1), shapes(size, model)
    dim = full["beit3.vision_embed.cls_token"][-1]

    def small(name: str, axis: int, length: int) -> int:
        if "embed_positions" in name and axis == 0:
            return length
        if length % dim == 0:
            return length // dim * DIM
        return {64010: 53, 8192: 17, 3129: 19, 1000: 13}.get(length, length)

    return {
        name: torch.randn(
            [small(name, axis, length) for axis, length in enumerate(shape)], generator=draw
        ).to(dtype)
        for name, shape in full.items()
    }
