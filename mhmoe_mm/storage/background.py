"""Writing while training goes on: values as they were at a moment, and a thread for them."""

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

THREAD = "mhmoe-mm checkpoint"


class Writer:
    """Does one piece of work after the other in a thread of its own; after one failed, no more."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, THREAD)
        self._given: list[Future[None]] = []
        self._failed = False

    def add(self, work: Callable[[], object]) -> None:
        """Let it be done when all is done that was given before; returns at once."""
        self._given.append(self._pool.submit(self._do, work))

    @property
    def error(self) -> BaseException | None:
        """What a piece of work raised that is done, if any did; waits for nothing."""
        done = [future for future in self._given if future.done()]
        return next((error for future in done if (error := future.exception())), None)

    def wait(self) -> BaseException | None:
        """Come back when all is done, with what the first raised that failed; then start anew."""
        given, self._given = self._given, []
        errors = [future.exception() for future in given]
        self._failed = False
        return next((error for error in errors if error), None)

    def close(self) -> None:
        """Wait, and end the thread."""
        self._pool.shutdown()

    def _do(self, work: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise


def snapshot(values: Any, offloaded: bool = False) -> Any:
    """A copy on the CPU that later steps do not change; what shares memory shares it there too.

    Args:
        values: dicts, lists and tuples of tensors and plain values.
        offloaded: the shards among them that lie on the CPU were copied there from a device
            already, and are not copied again.
    """
    return _copied(values, offloaded, {})


def _copied(value: Any, offloaded: bool, known: dict[Any, Tensor]) -> Any:
    if isinstance(value, DTensor):
        part = value.to_local()
        if not (offloaded and part.device.type == "cpu"):
            part = _tensor(part, known)
        return DTensor.from_local(
            part, value.device_mesh, value.placements, run_check=False,
            shape=value.shape, stride=value.stride(),
        )  # fmt: skip
    if isinstance(value, Tensor):
        return _tensor(value, known)
    if isinstance(value, Mapping):
        return {key: _copied(item, offloaded, known) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item, offloaded, known) for item in value]
    if type(value) is tuple:
        return tuple(_copied(item, offloaded, known) for item in value)
    return copy.deepcopy(value)


def _tensor(tensor: Tensor, known: dict[Any, Tensor]) -> Tensor:
    tensor = tensor.detach()
    place = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
    if place not in known or not tensor.numel():
        known[place] = tensor.to("cpu", copy=True)
    return known[place]
