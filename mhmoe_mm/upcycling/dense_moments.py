"""The optimizer's state of a trained dense model, by the names of its parameters.

Shards have it by names. A single file has it by the numbers that parameters had in the optimizer,
which is therefore made once more, as the training made it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhmoe_mm.checkpoint.moments import Moments
from mhmoe_mm.loading import TRAINING_ONLY, task_of
from mhmoe_mm.storage.checkpoint_io import OPTIMIZER
from mhmoe_mm.storage.exported import is_exported
from mhmoe_mm.storage.sharded import is_sharded, read_whole


def dense_moments(
    content: dict[str, Any],
    given: dict[str, Any],
    file: Path,
    tokenizer: str | Path | None = None,
    plugins: Sequence[str] = (),
) -> dict[str, Moments]:
    """AdamW's moments of every parameter that has learned.

    Args:
        content, given: as `mhmoe_mm.loading.read_model` read them, which verified the file.
        file: a checkpoint of `mhmoe-mm fit`, one file or a folder of shards.
        tokenizer, plugins: as for `mhmoe_mm.load`.

    Raises:
        ValueError: it holds no optimizer's state, or another's than AdamW, or the task that was
            trained cannot be made here.
    """
    if is_sharded(file):
        name = OPTIMIZER.format(0)
        state = read_whole(file, f"{name}.").get(name, {}).get("state", {})
    else:
        states = [] if is_exported(file) else content.get("optimizer_states") or []
        state = states[0]["state"] if states else {}
    if not state:
        raise ValueError(
            f"{file} holds no optimizer's state, as exports and files of weights do not: name a "
            "checkpoint of the training, or the folder of its run, or leave --optimizer-state out."
        )
    for held in state.values():
        if lacking := sorted(set(Moments._fields) - held.keys()):
            raise ValueError(
                f"{file} holds the state of an optimizer that keeps {', '.join(sorted(held))} and "
                f"no {' or '.join(lacking)}: only AdamW's can be taken over, so leave "
                "--optimizer-state out."
            )
    if not is_sharded(file):
        names = _names(content, given, file, tokenizer, plugins)
        state = {names[number]: held for number, held in state.items()}
    moments = {
        name: Moments(held["exp_avg"], held["exp_avg_sq"], torch.as_tensor(held["step"]).float())
        for name, held in state.items()
    }
    _check_shapes(moments, content["state_dict"], file)
    return moments


def _names(
    content: dict[str, Any],
    given: dict[str, Any],
    file: Path,
    tokenizer: str | Path | None,
    plugins: Sequence[str],
) -> list[str]:
    """Of all parameters in the optimizer, by their numbers there."""
    left_out = [name for name in TRAINING_ONLY if name != "optimizer"]
    loaded = task_of(content, dict(given), file, "cpu", tokenizer, tuple(plugins), None, left_out)
    named = {id(param): name for name, param in loaded.task.named_parameters()}
    optimizer = loaded.task.make_optimizer(loaded.task.named_parameters())
    groups = [[named[id(param)] for param in group["params"]] for group in optimizer.param_groups]
    there = content["optimizer_states"][0]["param_groups"]
    if [len(group) for group in groups] != [len(group["params"]) for group in there]:
        raise ValueError(
            f"{file} holds the state of an optimizer with other groups of parameters than its task "
            "makes now: which is whose cannot be told, so leave --optimizer-state out."
        )
    numbers = [number for group in there for number in group["params"]]
    names = [name for group in groups for name in group]
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def _check_shapes(
    moments: Mapping[str, Moments], weights: Mapping[str, Tensor], file: Path
) -> None:
    for name, held in moments.items():
        shape = weights[name].shape if name in weights else None
        if held.exp_avg.shape != shape or held.exp_avg_sq.shape != shape:
            raise ValueError(
                f"{file} holds an optimizer's state that is not of its weights: that of {name} is "
                f"{tuple(held.exp_avg.shape)}, the weight "
                f"{'missing' if shape is None else tuple(shape)}. Leave --optimizer-state out."
            )
