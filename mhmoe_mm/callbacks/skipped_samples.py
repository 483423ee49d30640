"""Samples that a data module could not read, over all ranks."""

from typing import Any

import torch.distributed
from lightning.pytorch import Trainer


def skipped_samples(trainer: Trainer) -> dict[str, str]:
    """`shard/key` -> what was wrong, a word; sorted. Asks all ranks, so call it on all.

    Empty where the data module keeps no `ledger`.
    """
    ledger = getattr(getattr(trainer, "datamodule", None), "ledger", None)
    own: dict[str, str] = getattr(ledger, "samples", {})
    return dict(sorted(item for samples in gathered(own) for item in samples.items()))


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
