"""A tiny trained tokenizer as an export."""

from pathlib import Path
from typing import Any

import torch

from mhmoe_mm.models.vqkd import VQKD
from mhmoe_mm.storage.exported import write_exported

SHAPE = {
    "dim": 14, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "num_codes": 23,
    "code_dim": 5, "feature_dim": 3,
}  # fmt: skip


def export_tokenizer(
    folder: Path, image_size: int, patch_size: int, started: bool = True, **changed: Any
) -> VQKD:
    """Write one whose codes are random; the tokenizer. `changed` belongs to what it says it is."""
    shape = {"image_size": image_size, "patch_size": patch_size, **SHAPE}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = VQKD(**shape)
        for weight in tokenizer.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    tokenizer.codebook.started.fill_(started)
    net = {"class_path": "mhmoe_mm.models.vqkd.VQKD", "init_args": shape, **changed}
    task = {
        "class_path": "mhmoe_mm.tasks.image_tokenizer.ImageTokenizer",
        "init_args": {"net": net},
    }
    weights = {f"net.{name}": weight for name, weight in tokenizer.state_dict().items()}
    config = {"mhmoe_mm": "test", "task": task}
    write_exported(folder, config, weights, None, {}, "# A tokenizer\n")
    return tokenizer
