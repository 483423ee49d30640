"""Sums of loads, kept on the device until someone asks, then over all ranks at once."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch import distributed as dist

from mhmoe_mm.moe.routing import Load


class _Shape(NamedTuple):
    """What is needed to find a layer's load in a flat vector."""

    layer: str
    names: tuple[str, ...]
    experts: int

    @property
    def sizes(self) -> list[int]:
        """Elements of each tensor of a `Load`, in the order of its fields."""
        kinds = len(self.names)
        return [kinds * self.experts, kinds, kinds, self.experts, self.experts, 1, 1]

    def load(self, flat: Tensor) -> Load:
        """The load that lies in this vector."""
        count, dropped, token, first, prob, entropy, square = flat.split(self.sizes)
        count = count.view(len(self.names), self.experts)
        return Load(count, dropped, token, first, prob, entropy[0], square[0], self.names)


class LoadSums:
    """Adds up the loads of steps: two kernels a step whatever the number of layers, and no wait.

    All layers lie in one vector, so that summing over ranks is one call. It is in float64, which
    counts exactly up to 2^53 tokens (float32, which Apple's GPUs are limited to, up to 2^24).
    Steps may bring different layers (a batch without images); each set has its own vector.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._sums: dict[tuple[_Shape, ...], Tensor] = {}

    @torch.no_grad()
    def add(self, outputs: Any) -> None:
        """Add what a step returned, if it returned loads."""
        self.steps += 1
        loads = outputs.get("loads") if isinstance(outputs, Mapping) else None
        if not loads:
            return
        shapes = tuple(_Shape(k, load.names, load.first.shape[0]) for k, load in loads.items())
        flat = torch.cat([v.reshape(-1) for load in loads.values() for v in load[:-1]])
        if shapes in self._sums:
            self._sums[shapes].add_(flat)
        else:
            self._sums[shapes] = flat.to(_exact(flat.device))

    def reduce(self, trainer: Trainer) -> dict[str, Load]:
        """The loads of all ranks by layer, on the CPU. Every rank must call it."""
        own = list(dict.fromkeys(shape for shapes in self._sums for shape in shapes))
        layers = _agree(_of_all_ranks(own) if trainer.world_size > 1 else [own])
        if not layers:
            return {}
        device = trainer.strategy.root_device
        sizes = {shape: sum(shape.sizes) for shape in layers}
        total = torch.zeros(sum(sizes.values()), dtype=_exact(device), device=device)
        places = dict(zip(layers, total.split(list(sizes.values())), strict=True))
        for shapes, sums in self._sums.items():
            parts = sums.split([sizes[shape] for shape in shapes])
            for shape, part in zip(shapes, parts, strict=True):
                places[shape].add_(part)
        summed = trainer.strategy.reduce(total, reduce_op="sum")
        assert isinstance(summed, Tensor)
        parts = summed.cpu().split(list(sizes.values()))
        return {s.layer: s.load(part) for s, part in zip(layers, parts, strict=True)}


def _exact(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _of_all_ranks(own: list[_Shape]) -> list[list[_Shape]]:
    """Ranks may have seen different layers, so they say which before they sum."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def _agree(by_rank: Iterable[list[_Shape]]) -> list[_Shape]:
    """All layers that any rank saw, in one order."""
    layers = list(dict.fromkeys(shape for shapes in by_rank for shape in shapes))
    known: dict[str, _Shape] = {}
    for shape in layers:
        if known.setdefault(shape.layer, shape) != shape:
            raise ValueError(
                f"Layer {shape.layer} returned loads of {known[shape.layer].experts} experts with "
                f"kinds {known[shape.layer].names} and of {shape.experts} with {shape.names}: they "
                "do not add up."
            )
    return layers
