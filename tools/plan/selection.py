"""How many rows a mask selects, where tensors have no content to count."""

from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TOLD = "rows_selected"
T = TypeVar("T", bound=Tensor)


def told(mask: T, rows: int) -> T:
    """The tensor, with a note of how many rows it selects, or has to predict."""
    setattr(mask, _TOLD, rows)
    return mask


class Selections(TorchFunctionMode):
    """`tensor[mask]` has as many rows as the mask was told to select, or all of them.

    What is derived from a tensor with a note, place by place, has the same note.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor):
            tensor, mask = args
            if mask.dtype == torch.bool:
                rows = getattr(mask, _TOLD, mask.numel())
                return tensor.flatten(0, mask.ndim - 1)[:rows] if mask.ndim > 1 else tensor[:rows]
        result = func(*args, **(kwargs or {}))
        note = getattr(args[0], _TOLD, None) if args and isinstance(args[0], Tensor) else None
        if note is not None and isinstance(result, Tensor) and result.shape == args[0].shape:
            told(result, note)
        return result
