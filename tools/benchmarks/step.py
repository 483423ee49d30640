"""How long a training step of a whole network takes, by what its sparse layers are.

    python -m tools.benchmarks.step conf/nets/tiny.yaml conf/nets/small.yaml --batch 32

A step is forward, loss, backward and the optimizer's step on a batch of made-up content, nothing
else: no data are read and no trainer is there (`tools.benchmarks.trainer` is about those).
Pretraining reads as many images, texts and pairs. All engines train the same network but for its
sparse layers, whose place is taken by a dense net of equal multiply-adds (the ceiling, whose time
is 1), by our layers, by peers, and by our layers with a loop over experts. None of them has biases
or a norm within the experts, since peers know neither. Peers report no loads, so that nothing
balances their experts. Where a step reads images, texts or pairs, "ours, apart" is our layers with
a pass through the net for each of them in place of the one for all (`BEiT3.together`).
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mhmoe_mm.callbacks.freed_memory import KeepFreedMemory
from mhmoe_mm.models.beit3 import BEiT3, Encoded, MultiwayInput
from mhmoe_mm.moe import MHMoE, SparseMoE
from mhmoe_mm.moe.layer_shape import shape_of
from mhmoe_mm.moe.sparse_layers import sparse_layers
from mhmoe_mm.tasks.base import Task
from tools.benchmarks.cases import Case
from tools.benchmarks.engines import DENSE, LOOP, NEEDS_CUDA, OURS, TRITON, made, ours
from tools.benchmarks.options import add_peers, add_turns, check_peers, check_turns
from tools.benchmarks.turns import CLOCKS, Figure, Run, console, in_turns, tell_all
from tools.plan.batches import made_up
from tools.plan.settings import PRECISIONS, TASKS, Setting, setting_of
from tools.plan.step import optimizer_of, take_step, task_of

APART = "ours, apart"
NETS = [Path("conf/nets/tiny.yaml"), Path("conf/nets/mini.yaml"), Path("conf/nets/small.yaml")]


class Stranger(nn.Module):
    """A layer of somebody else in the place of one of ours."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, keep: Any = None, kinds: Any = None) -> tuple[Tensor, None]:
        return self.inner(x), None


def task_with(engine: str, setting: Setting, device: str) -> Task:
    """The task, its sparse layers replaced by what the engine's name says.

    Raises:
        Unfit: a layer of the net is not for this peer.
    """
    torch.manual_seed(0)
    task = task_of(setting, device)
    layers = sparse_layers(task.net)
    if not layers:
        raise ValueError(f"{setting.net} has no sparse layer: all engines would be the same.")
    for name, layer in layers.items():
        shape = replace(shape_of(layer), bias=False, sub_norm=False)
        layer_of = OURS if engine == APART else engine
        made_of = made(layer_of, Case(longest(task.net, setting), shape), None).to(device)
        own = isinstance(made_of, SparseMoE | MHMoE)
        task.net.set_submodule(name, made_of if own else Stranger(made_of))
    if engine == APART:
        task.net.together = partial(one_after_the_other, task.net)
    return task


def one_after_the_other(net: BEiT3, *sequences: MultiwayInput) -> list[Encoded]:
    """What `together` gives, but for the loads, which are those of the first sequence."""
    return [net(*sequence) for sequence in sequences]


def longest(net: nn.Module, setting: Setting) -> int:
    """Tokens of the longest forward of a step."""
    patches = net.image_embedding.num_patches + 1 if isinstance(net, BEiT3) else 0
    apart = setting.task == "retrieval"
    return setting.batch * (max(patches, setting.text) if apart else patches + setting.text)


def timed(
    task: Task, optimizer: Optimizer, batch: Any, setting: Setting, clock: Callable[[], float]
) -> float:
    """Seconds of one step."""
    wait = torch.cuda.synchronize if task.device.type == "cuda" else _nothing
    wait()
    start = clock()
    take_step(task, optimizer, batch, setting, setting.accumulate)
    wait()
    return clock() - start


def measure(
    setting: Setting, engines: list[str], device: str, repeats: int, clock: Callable[[], float]
) -> dict[str, Figure]:
    """Every engine in the net of the setting."""

    def make(engine: str) -> Run:
        task = task_with(engine, setting, device).to(device)
        batch = task.transfer_batch_to_device(made_up(task, setting), task.device, 0)
        return partial(timed, task, optimizer_of(task), batch, setting, clock)

    return in_turns({engine: partial(make, engine) for engine in engines}, repeats)


def _nothing() -> None:
    """What a processor need not be waited for."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.step", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    listed = ", ".join(map(str, NETS))
    add("nets", type=Path, nargs="*", default=NETS, metavar="NET.yaml", help=f"({listed})")
    add("--task", choices=TASKS, help="(default: what the net is for)")
    add("--batch", type=int, default=32, metavar="N", help="rows (32)")
    add("--text", type=int, default=32, metavar="N", help="tokens of a text (32)")
    add("--precision", choices=PRECISIONS, default="32-true")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, help="also write the figures to this file")
    add_peers(parser)
    add_turns(parser)
    args = parser.parse_args(argv)
    check_peers(parser, args)
    check_turns(parser, args)
    try:
        args.settings = [
            setting_of(argparse.Namespace(**vars(args) | {"net": net}), world=1)
            for net in args.nets
        ]
        for setting in args.settings:
            task_with(OURS, setting, "meta")
    except ValueError as error:
        parser.error(str(error))
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the table; write the figures where asked."""
    args = parse(argv)
    if args.keep_memory:
        KeepFreedMemory().keep()
    warnings.filterwarnings("ignore", "You are trying to `self.log")
    tell = console()
    apart = [APART] if all(setting.task != "language_modeling" for setting in args.settings) else []
    loop = [] if args.no_loop else [LOOP]
    engines = [DENSE, *ours(args.device), *apart, *args.peers, *loop]
    told = (
        f"{args.precision} on {args.device}, {torch.get_num_threads()} threads, {args.batch} rows, "
        f"texts of {args.text}, torch {torch.__version__}"
    )
    tell.print(f"A step, {told}, {args.clock} time; x: with dense layers it is 1")
    if TRITON not in engines:
        tell.print(NEEDS_CUDA)
    rows = [
        (setting.net.stem, measure(setting, engines, args.device, args.repeats, CLOCKS[args.clock]))
        for setting in args.settings
    ]
    tell_all(tell, rows, told, [{}] * len(rows), args.json, args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
