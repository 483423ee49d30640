"""The trained model that a tool is asked about."""

from collections.abc import Sequence
from pathlib import Path

import mhmoe_mm
from mhmoe_mm.inference import Model
from mhmoe_mm.tasks.base import Task
from tools.build_shards.errors import InputError


def load_model(
    source: str | Path, kind: type[Task], device: str, plugins: Sequence[str] = ()
) -> Model:
    """The model of a run or a checkpoint of it; InputError where there is none of this task."""
    try:
        model = mhmoe_mm.load(source, device, plugins=plugins)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not isinstance(model.task, kind):
        raise InputError(
            f"{model.source} holds a model of the task {type(model.task).__name__}: name a "
            f"checkpoint of {kind.__name__}."
        )
    return model
