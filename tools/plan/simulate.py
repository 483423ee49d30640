"""The step of one rank of many, in one process, on tensors without content.

The group of ranks is not there either: torch's "fake" process group answers every collective at
once. What depends on content is assumed: masks select as many rows as settings say, and experts get
equally many tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer
from torch.testing._internal.distributed.fake_pg import FakeStore

from mhmoe_mm.models.flops import Flops
from mhmoe_mm.moe.backend_triton import TritonBackend
from mhmoe_mm.moe.expert_parallel import ExpertParallel, Sizes
from mhmoe_mm.parallel.norms import local
from mhmoe_mm.tasks.base import Task
from tools.plan.batches import made_up
from tools.plan.ledger import Channel, Ledger, Traffic
from tools.plan.selection import Selections
from tools.plan.settings import Setting
from tools.plan.step import loss_of, optimizer_of, ranks_of, spread, take_step, task_of


class Plan(NamedTuple):
    """What one rank needs; bytes, operations and messages are of one step."""

    setting: Setting
    parameters: int
    """Of the whole task."""
    weights: int
    """Bytes of this rank's share of the parameters, and of buffers."""
    optimizer: int
    """Bytes of its share of the optimizer's state."""
    gradients: int
    """Bytes of its share of the gradients."""
    peak: int
    """Most bytes of tensors that are alive together."""
    flops: float
    """Floating-point operations of matrix products and attention, with what is recomputed; a
    multiply-add is two."""
    model_flops: float
    """Three times those of the forward: what MFU counts."""
    traffic: dict[Channel, Traffic]

    @property
    def passing(self) -> int:
        """Bytes at the peak that are no share of weights, gradients or optimizer state: gathered
        weights, activations, gradients on their way.
        """
        return self.peak - self.weights - self.gradients - self.optimizer

    @property
    def sent(self) -> float:
        """Bytes that this rank sends in a step."""
        return sum(traffic.sent for traffic in self.traffic.values())


def simulate(setting: Setting) -> Plan:
    """Carry a step out without carrying it out.

    Raises:
        ValueError: the net cannot be built or spread.
    """
    task = task_of(setting)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with _group(setting.world):
        parameters = sum(p.numel() for p in task.parameters())
        # On the meta device: quick for a thousand ranks, and arithmetic of ranks has its numbers.
        spread(task, setting, ranks_of(setting))
        _assume(task)
        with fake, Selections():
            task.to_empty(device="cpu")
            return _planned(task, setting, parameters)


def _planned(task: Task, setting: Setting, parameters: int) -> Plan:
    optimizer = optimizer_of(task)
    batch = made_up(task, setting)
    with Flops() as forward:
        loss = loss_of(task, batch, setting)
    with Flops() as backward:
        loss.backward()
    del loss
    task.forget_loads()
    optimizer.step()
    optimizer.zero_grad()

    own, states = [*task.parameters(), *task.buffers()], _states(optimizer)
    ledger = Ledger([*own, *states])
    # A second micro-batch meets the gradients of the first; a third meets the same.
    measured = min(setting.accumulate, 2)
    with ledger:
        take_step(task, optimizer, batch, setting, measured)
    more = setting.accumulate / measured
    for traffic in ledger.traffic.values():
        traffic.messages = round(traffic.messages * more)
        traffic.sent *= more
    return Plan(
        setting=setting,
        parameters=parameters,
        weights=sum(_bytes(t) for t in own),
        optimizer=sum(_bytes(t) for t in states),
        gradients=sum(_bytes(p) for p in task.parameters() if p.requires_grad),
        peak=ledger.peak,
        flops=(forward.total + backward.total) * setting.accumulate,
        model_flops=3 * forward.total * setting.accumulate,
        traffic=ledger.traffic,
    )


@contextmanager
def _group(world: int) -> Iterator[None]:
    """A group of so many ranks, of which this process is the first."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _assume(task: Task) -> None:
    """Experts on other ranks get as many rows as any, and kernels for a GPU are never run."""
    for module in task.modules():
        backend = getattr(module, "backend", None)
        if isinstance(backend, ExpertParallel):
            backend.agree = _even
            backend = backend.inner
        if isinstance(backend, TritonBackend):
            backend.devices = ("cuda", "cpu")


def _even(count: Tensor, rows: int, group: dist.ProcessGroup) -> Sizes:
    arriving = torch.empty_like(count)
    dist.all_to_all_single(arriving, count, group=group)
    ranks = group.size()
    each = [rows // ranks + (rank < rows % ranks) for rank in range(ranks)]
    return Sizes(arriving, each, [each[0]] * ranks)


def held(task: Task, optimizer: Optimizer) -> int:
    """Bytes of this rank's weights, buffers and optimizer state."""
    return sum(_bytes(t) for t in (*task.parameters(), *task.buffers(), *_states(optimizer)))


def _states(optimizer: Optimizer) -> list[Tensor]:
    states = (value for state in optimizer.state.values() for value in state.values())
    return [value for value in states if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return local(tensor).numel() * tensor.element_size()
