"""AdamW's state in a folder that a training starts from: its moments and steps, by the names of
parameters.

    exp_avg/NAME     mean of gradients          https://arxiv.org/abs/1711.05101
    exp_avg_sq/NAME  mean of their squares      both of the parameter's shape
    step/NAME        how many steps both have seen, a number

The file is `mhmoe_mm.storage.exported.MOMENTS`; `python -m tools.upcycle` writes it.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Adam, Optimizer

from mhmoe_mm.storage.exported import MOMENTS, is_exported, read_config


class Moments(NamedTuple):
    """What AdamW keeps of a parameter."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def as_tensors(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """As the file has them."""
    return {
        f"{what}/{name}": tensor
        for name, held in moments.items()
        for what, tensor in held._asdict().items()
    }


def read_moments(folder: Path) -> dict[str, Moments] | None:
    """Those of an exported model that is verified; None where it has none. They are mapped: they
    take memory as they are read.

    Raises:
        ValueError: a parameter's are not whole.
    """
    if not is_exported(folder) or MOMENTS not in read_config(folder)["files"]:
        return None
    tensors = load_file(folder / MOMENTS)
    names = dict.fromkeys(name.partition("/")[2] for name in tensors)
    wanted = {f"{what}/{name}" for name in names for what in Moments._fields}
    if tensors.keys() != wanted:
        differing = min(tensors.keys() ^ wanted)
        raise ValueError(
            f"{folder / MOMENTS} is not what an upcycling writes ({differing} is missing or does "
            "not belong there): make the folder anew."
        )
    return {
        name: Moments(*(tensors[f"{what}/{name}"] for what in Moments._fields)) for name in names
    }


def load_moments(
    optimizer: Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    path: str,
    loaded: Collection[str],
) -> str | None:
    """Let a new optimizer go on with the state that lies beside the weights of a training's start.

    Args:
        optimizer: that has made no step; its parameters may be sharded (DTensor).
        named: all parameters by the names in the task.
        path: what the training starts from; only a folder can have a state.
        loaded: names of the weights that it starts with as they are there; others start fresh.

    Returns:
        How many parameters have a state, one line; None where there is no such file.

    Raises:
        ValueError: the optimizer is not AdamW, or a state has another shape than its parameter.
    """
    moments = read_moments(Path(path))
    if moments is None:
        return None
    if not isinstance(optimizer, Adam) or any(g["amsgrad"] for g in optimizer.param_groups):
        kind = type(optimizer).__name__
        raise ValueError(
            f"{path} holds the state of AdamW, and {kind} as it is set keeps another: choose "
            f"mhmoe_mm.optim.AdamW, or start from the weights alone, {path}/model.safetensors."
        )
    names = {id(param): name for name, param in named}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = {}
    for number, param in enumerate(params):
        name = names[id(param)]
        if name not in loaded or name not in moments:
            continue
        held = moments[name]
        for moment in (held.exp_avg, held.exp_avg_sq):
            if moment.shape != param.shape:
                raise ValueError(
                    f"The optimizer's state of {name} has the shape {tuple(moment.shape)} in "
                    f"{path}, but the parameter is {tuple(param.shape)} here: make the folder "
                    f"anew, or start from the weights alone, {path}/model.safetensors."
                )
        state[number] = {
            "step": held.step.clone(),
            "exp_avg": _placed(held.exp_avg, param),
            "exp_avg_sq": _placed(held.exp_avg_sq, param),
        }
    # torch knows which device and precision each of them belongs in: a fused kernel's step too.
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return (
        f"optimizer's state from {path}: {len(state)} of {len(params)} parameters go on with "
        f"theirs, {len(params) - len(state)} start fresh"
    )


def _placed(whole: Tensor, param: nn.Parameter) -> Tensor:
    """In memory of its own, sharded as the parameter is; every rank has read the whole."""
    if not isinstance(param, DTensor):
        return whole.clone()
    return distribute_tensor(whole, param.device_mesh, param.placements, src_data_rank=None).clone()
