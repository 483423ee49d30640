"""The step that a plan simulates, on real tensors in real processes, beside what the plan says.

    torchrun --nproc-per-node 2 -m tools.plan.measure conf/nets/small.yaml --batch 32

Measured from outside: memory is what Linux counts as resident, traffic what goes over the loopback
interface, so all processes must run on one machine and nothing else may talk there.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

from mhmoe_mm.models.flops import Flops
from tools.plan.batches import made_up
from tools.plan.settings import Setting, parsed, parser_of
from tools.plan.simulate import Plan, held, simulate
from tools.plan.step import optimizer_of, ranks_of, spread, take_step, task_of

TRAFFIC, SENT = Path("/proc/self/net/dev"), 8
"""Bytes by interface, and which number of a line is those sent."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured(NamedTuple):
    """One step, after one that is not looked at; means over the ranks."""

    peak: float
    """Bytes: the tensors that are there before, and what was resident at most besides."""
    sent: float
    """Bytes over the loopback interface."""
    flops: float


def measure(setting: Setting) -> Measured:
    """Take two steps with the other ranks, and look at the second."""
    for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(option, 65536)  # what is freed is given back at once
    torch.manual_seed(0)
    task = task_of(setting).to_empty(device="cpu")
    with torch.no_grad():
        for param in task.parameters():
            param.normal_(std=0.02)
        for buffer in task.buffers():
            buffer.zero_()
    spread(task, setting, ranks_of(setting))
    optimizer = optimizer_of(task)
    batch = made_up(task, setting)
    take_step(task, optimizer, batch, setting, 1)
    before = held(task, optimizer)
    _meet()
    resident, sent = _status("VmRSS"), _loopback()
    FORGET.write_text("5")  # what was resident at most
    take_step(task, optimizer, batch, setting, setting.accumulate)
    peak = before + _status("VmHWM") - resident
    _meet()
    gone = _loopback() - sent
    with Flops() as flops:
        take_step(task, optimizer, batch, setting, setting.accumulate)
    mean = torch.tensor([peak, flops.total], dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(mean)
    peak, operations = (mean / setting.world).tolist()
    return Measured(peak, gone / setting.world, operations)


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


def _loopback() -> int:
    """Bytes that all processes have sent to each other."""
    line = next(x for x in TRAFFIC.read_text().splitlines() if x.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[SENT])


def _status(name: str) -> int:
    """Bytes, of a line such as `VmRSS:  1234 kB`."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def compared(plan: Plan, measured: Measured) -> Table:
    """Both side by side."""
    table = Table(title=f"one step of {plan.setting.world} processes", title_justify="left")
    for column in ("of one rank", "planned", "measured", "measured / planned"):
        table.add_column(column, justify="left" if column == "of one rank" else "right")
    rows = {
        "memory at most, MB": (plan.peak / 1e6, measured.peak / 1e6),
        "sent by gloo, MB": (_by_gloo(plan) / 1e6, measured.sent / 1e6),
        "operations, GFLOP": (plan.flops / 1e9, measured.flops / 1e9),
    }
    for name, (planned, real) in rows.items():
        ratio = f"{real / planned:.3f}" if planned else "-"
        table.add_row(name, f"{planned:,.1f}", f"{real:,.1f}", ratio)
    return table


def _by_gloo(plan: Plan) -> float:
    """Bytes; gloo makes an all-reduce of every reduce-scatter, which sends twice as much."""
    halved = (t.sent for channel, t in plan.traffic.items() if channel.kind == "reduce-scatter")
    return plan.sent + sum(halved)


def main(argv: Sequence[str] | None = None) -> int:
    """Run by every rank."""
    parser = parser_of("torchrun ... -m tools.plan.measure", __doc__)
    world = int(os.environ.get("WORLD_SIZE", 1))
    _, setting = parsed(parser, argv, world)
    if not TRAFFIC.exists() or not FORGET.exists():
        parser.error("this needs Linux, which counts what a process and the loopback interface do.")
    if world > 1:
        dist.init_process_group("gloo")
    try:
        measured = measure(setting)
    except ValueError as error:
        parser.error(str(error))
    first = not dist.is_initialized() or dist.get_rank() == 0
    if world > 1:
        dist.destroy_process_group()
    if first:
        Console().print(compared(simulate(setting), measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
