"""How long a sparse layer takes, beside a dense net of equal multiply-adds, peers and a plain loop.
On a CUDA device that is our layer with either backend, grouped ("ours") and Triton.

    python -m tools.benchmarks.layer --dtype bf16 --case d512-h2-E8-k2

One run measures all engines in turn, so that each sees the same machine; the figure of an engine
is the median of forward + backward of one whole layer (router, dispatch, experts, combine, head
and merge maps). Ratios are to the dense net, whose own is 1: the ceiling. `--clock cpu` counts the
time of the processor instead, for a machine that others use too.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import torch
from torch import Tensor, nn

from mhmoe_mm.callbacks.freed_memory import KeepFreedMemory
from tools.benchmarks.cases import Case
from tools.benchmarks.engines import DENSE, DTYPES, LOOP, NEEDS_CUDA, TRITON, made, ours
from tools.benchmarks.options import add_turns, check_turns, parsed, parser_of
from tools.benchmarks.turns import CLOCKS, Figure, Run, console, in_turns, tell_all


def timed(layer: nn.Module, x: Tensor, grad: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one forward and backward."""
    layer.zero_grad()
    x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = clock()
    y = layer(x)
    (y[0] if isinstance(y, tuple) else y).backward(grad)
    if x.is_cuda:
        torch.cuda.synchronize()
    return clock() - start


def measure(
    case: Case,
    engines: Sequence[str],
    dtype: torch.dtype,
    device: str,
    block: int | None,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Figure]:
    """Every engine on one case."""
    torch.manual_seed(0)
    x = torch.randn(1, case.tokens, case.shape.dim, device=device, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)

    def make(name: str) -> Run:
        layer = made(name, case, block).to(device, dtype)
        return partial(timed, layer, x, grad, clock)

    return in_turns({name: partial(make, name) for name in engines}, repeats)


def parse(argv: list[str] | None) -> argparse.Namespace:
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser = parser_of("layer", "How long a sparse layer takes.", usual)
    add_turns(parser)
    args = parsed(parser, argv)
    check_turns(parser, args)
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the table; write the figures where asked."""
    args = parse(argv)
    if args.keep_memory:
        KeepFreedMemory().keep()
    tell = console()
    engines = [DENSE, *ours(args.device), *args.peers, *([] if args.no_loop else [LOOP])]
    told = f"{args.dtype} on {args.device}, {torch.get_num_threads()} threads, torch"
    tell.print(f"{told} {torch.__version__}, {args.clock} time; x: that of the dense net is 1")
    if TRITON not in engines:
        tell.print(NEEDS_CUDA)
    rows: list[tuple[Case, dict[str, Figure]]] = []
    for case in args.cases:
        figures = measure(
            case, engines, DTYPES[args.dtype], args.device, args.block, args.repeats,
            CLOCKS[args.clock],
        )  # fmt: skip
        rows.append((case, figures))
    named = [(case.name, figures) for case, figures in rows]
    details = [{**asdict(case.shape), "tokens": case.tokens} for case, _ in rows]
    tell_all(tell, named, told, details, args.json, args.png)
    return 0


if __name__ == "__main__":
    sys.exit(main())
