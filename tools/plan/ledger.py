"""A record of a step: bytes that are alive, and what is sent to other ranks."""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mhmoe_mm.parallel.norms import local

_C10D = torch.ops.c10d


class _Kind(NamedTuple):
    """A collective: how much of a tensor each rank sends, in a ring."""

    name: str
    counted: int
    """The argument whose bytes count."""
    group: int
    """The argument that is the group."""
    times: int
    """Each rank sends `times * (n - 1) / n` of these bytes."""


_KINDS = {
    _C10D._allgather_base_.default: _Kind("all-gather", 0, 2, 1),
    _C10D.allgather_.default: _Kind("all-gather", 0, 2, 1),
    _C10D._reduce_scatter_base_.default: _Kind("reduce-scatter", 1, 2, 1),
    _C10D.allreduce_.default: _Kind("all-reduce", 0, 1, 2),
    _C10D.alltoall_base_.default: _Kind("all-to-all", 1, 2, 1),
}


class Channel(NamedTuple):
    """A kind of exchange among a group of ranks."""

    kind: str
    ranks: tuple[int, ...]


@dataclass
class Traffic:
    """What went over a channel."""

    messages: int = 0
    sent: float = 0.0
    """Bytes that this rank sends, where collectives go round in a ring."""


@dataclass
class Ledger(TorchDispatchMode):
    """Counts while it is entered; memory is that of tensors, whoever holds them.

    Args:
        present: tensors that are there before.
    """

    present: Iterable[Tensor] = ()
    alive: int = 0
    """Bytes of storages that exist."""
    peak: int = 0
    traffic: dict[Channel, Traffic] = field(default_factory=dict)

    def __post_init__(self):
        super().__init__()
        self._sizes: dict[int, int] = {}
        for tensor in self.present:
            self._meet(tensor)

    def __enter__(self):
        self._resize = torch.UntypedStorage.resize_
        ledger = self

        def resized(storage: torch.UntypedStorage, size: int) -> Any:
            result = ledger._resize(storage, size)
            ledger._update(storage)
            return result

        torch.UntypedStorage.resize_ = resized  # FSDP gives and takes memory in this way
        return super().__enter__()

    def __exit__(self, *error: Any):
        torch.UntypedStorage.resize_ = self._resize
        return super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts come by as plain tensors
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        if func in _KINDS:
            self._sent(_KINDS[func], args)
        return result

    def _sent(self, kind: _Kind, args: tuple[Any, ...]) -> None:
        group = dist.ProcessGroup.unbox(args[kind.group])
        ranks = tuple(dist.get_process_group_ranks(group))
        tensors = [t for t in tree_iter(args[kind.counted]) if isinstance(t, Tensor)]
        size = sum(t.numel() * t.element_size() for t in tensors)
        traffic = self.traffic.setdefault(Channel(kind.name, ranks), Traffic())
        traffic.messages += 1
        traffic.sent += kind.times * size * (len(ranks) - 1) / len(ranks)

    def _meet(self, tensor: Tensor) -> None:
        tensor = local(tensor)
        if tensor.device.type != "meta":
            self._update(tensor.untyped_storage())

    def _update(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            weakref.finalize(storage, self._gone, key)
        self._sizes[key] = size
        self.alive += size - (known or 0)
        self.peak = max(self.peak, self.alive)

    def _gone(self, key: int) -> None:
        self.alive -= self._sizes.pop(key)
