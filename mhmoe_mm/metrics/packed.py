"""What metrics keep per sample, as bytes, so that ranks can exchange it whatever each of them saw.

torchmetrics joins lists of tensors over the ranks, but a rank that saw nothing hands over an empty
tensor of floats, and strings do not travel at all. A list of byte tensors carries both: numbers as
they lie in memory, rows of strings and numbers as lines of JSON.
"""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

Row = list[Any]
"""What is known of one sample, its id first; anything that JSON can hold."""


def gather_bytes(chunk: Tensor, group: Any = None) -> list[Tensor]:
    """The bytes of every rank; a `dist_sync_fn` for metrics whose states are all lists of bytes."""
    return gather_all_tensors(chunk.to(torch.uint8), group)


def packed_tensor(value: Tensor) -> Tensor:
    """A tensor as a flat row of bytes."""
    return value.detach().contiguous().flatten().view(torch.uint8)


def unpacked_tensor(chunks: list[Tensor] | Tensor, dtype: torch.dtype) -> Tensor:
    """The flat tensor whose pieces `packed_tensor` made, in the order in which they came."""
    return _joined(chunks).view(dtype)


def packed_rows(rows: Sequence[Row], device: torch.device) -> Tensor:
    """Rows as bytes."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)


def unpacked_rows(chunks: list[Tensor] | Tensor) -> list[Row]:
    """One row per id, in an order that depends on which rank saw which sample.

    Of rows with the same id the first counts; a warning says how many were left out.
    """
    lines = _joined(chunks).cpu().numpy().tobytes().decode().splitlines()
    found: dict[str, Row] = {}
    for row in map(json.loads, lines):
        found.setdefault(str(row[0]), row)
    if repeated := len(lines) - len(found):
        warnings.warn(
            f"{repeated} of {len(lines)} evaluated samples carry an id that another one carries "
            "too, and were left out. Mark rows that only fill up a batch with valid=False, and "
            "give every sample an id of its own.",
            stacklevel=2,
        )
    return list(found.values())


def kept(valid: Tensor | None, count: int) -> list[int]:
    """Positions of the rows of a batch that count."""
    if valid is None:
        return list(range(count))
    if len(valid) != count:
        raise ValueError(f"valid has {len(valid)} entries for {count} samples.")
    return valid.nonzero().flatten().tolist()


def _joined(chunks: list[Tensor] | Tensor) -> Tensor:
    if isinstance(chunks, Tensor):
        return chunks
    return torch.cat(chunks) if chunks else torch.empty(0, dtype=torch.uint8)
