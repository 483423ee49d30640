"""The tensors in a file, whoever wrote it. Nothing that a file says is run.

Read are checkpoints of this project and exports of them, safetensors files, and what `torch.save`
wrote of released models, whose tensors stand under `model`, `state_dict` or `module`.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.exported import is_exported, read_exported
from mhmoe_mm.storage.sealed import Damaged
from mhmoe_mm.storage.sharded import is_sharded

KEYS = ("state_dict", "model", "module")
"""Where checkpoints keep their weights: ours, the released models', DeepSpeed's."""


def check_path(path: str) -> None:
    """Refuse addresses: what they return is not under the user's control."""
    if re.match(r"\w+://", path):
        raise ValueError(f"Weights are not read from addresses: download {path} and name the file.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights in a safetensors file, a checkpoint or an export, on the CPU.

    Raises:
        ValueError: there is no such file, or it cannot be read, or not without running code.
    """
    check_path(str(path))
    path = Path(path)
    if is_exported(path):
        return read_exported(path)["state_dict"]
    if path.is_dir() and not is_sharded(path):
        raise ValueError(
            f"{path} is a folder, perhaps a sharded checkpoint: name one file, or the checkpoint's "
            "own folder."
        )
    if not path.exists():
        raise ValueError(
            f"There are no weights at {path} to start from: name another file, or set init_from to "
            "null where a checkpoint of the task is restored anyway."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Released trainings keep their command line beside the weights. Its class holds values
        # and runs nothing as it is read.
        with torch.serialization.safe_globals([Namespace]):
            content = read_any(path, weights_alone=True)
    except Damaged as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{path} is neither a checkpoint nor safetensors, or not a whole one ({reason})."
        ) from error
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{path} holds no weights that can be read safely ({reason}): name another file."
        ) from error
    for key in KEYS:
        if isinstance(content.get(key), dict):
            return {name: w for name, w in content[key].items() if isinstance(w, Tensor)}
    if content and all(isinstance(weight, Tensor) for weight in content.values()):
        return content
    raise ValueError(
        f"{path} is no checkpoint of ours: it has no 'state_dict', nor is it weights alone."
    )


def in_float32(weights: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """The same weights in float32.

    Raises:
        ValueError: one is not a tensor of floating-point numbers, or holds some that are none.
    """
    result = {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise ValueError(
                f"{name} in {path} holds {str(weight.dtype).removeprefix('torch.')}, where weights "
                "are floating-point numbers: it is quantised, or no weight."
            )
        result[name] = weight.float()
        if not result[name].isfinite().all():
            raise ValueError(f"{name} in {path} holds values that are no numbers: it is damaged.")
    return result
