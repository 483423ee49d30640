"""How long a sparse layer takes, beside a dense net of equal multiply-adds and a plain loop.

    python -m tools.benchmarks.layer --dtype bf16 --case d512-h2-E8-k2

One run measures all engines in turn, so that each sees the same machine; the figure of an engine
is the median of forward + backward of one whole layer (router, dispatch, experts, combine, head
and merge maps), and `x` its ratio to the dense net: the ceiling is 1.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mhmoe_mm.callbacks.freed_memory import KeepFreedMemory
from mhmoe_mm.moe import GroupedBackend, LoopBackend, MHMoE, SparseMoE
from mhmoe_mm.moe.budget import LayerShape

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One layer and how many tokens it reads."""

    tokens: int
    shape: LayerShape

    @property
    def name(self) -> str:
        s = self.shape
        return f"T{self.tokens}-d{s.dim}-h{s.num_heads}-E{s.num_experts}-k{s.top_k}-f{s.hidden}"

    def dense_hidden(self) -> int:
        """Inner width of the dense net with the layer's multiply-adds, the router's left out."""
        return int(self.shape.active_macs) // (2 * self.shape.dim)


def case(tokens: int, dim: int, heads: int, experts: int, top_k: int, hidden: int) -> Case:
    maps = 1 if heads > 1 else 0
    shape = LayerShape(dim, hidden, experts, top_k, heads, head_layers=maps, merge_layers=maps)
    return Case(tokens, shape)


CASES = [
    case(4096, 512, 1, 8, 1, 2048),
    case(4096, 512, 1, 8, 2, 1024),
    case(4096, 512, 2, 8, 2, 1024),
    case(4096, 512, 4, 32, 2, 512),
    case(4096, 384, 4, 32, 2, 384),
    case(2048, 384, 2, 8, 2, 768),
    case(2048, 512, 1, 32, 2, 1024),
    case(2048, 384, 2, 128, 2, 768),
    case(8192, 512, 4, 128, 2, 512),
]


def dense(case: Case) -> nn.Module:
    hidden = case.dense_hidden()
    dim = case.shape.dim
    return nn.Sequential(
        nn.Linear(dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False)
    )


def sparse(case: Case, backend: GroupedBackend | LoopBackend) -> nn.Module:
    layer = case.shape.build()
    assert isinstance(layer, SparseMoE | MHMoE)
    (layer.moe if isinstance(layer, MHMoE) else layer).experts.backend = backend
    return layer


def timed(layer: nn.Module, x: Tensor, grad: Tensor) -> float:
    """Seconds of one forward and backward."""
    layer.zero_grad()
    x.grad = None
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    y = layer(x)
    (y[0] if isinstance(y, tuple) else y).backward(grad)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: Case, dtype: torch.dtype, device: str, block: int, repeats: int) -> dict:
    """Median and spread in ms of every engine on one case."""
    torch.manual_seed(0)
    engines = {
        "dense": dense(case),
        "grouped": sparse(case, GroupedBackend(block)),
        "loop": sparse(case, LoopBackend()),
    }
    for layer in engines.values():
        layer.to(device, dtype)
    x = torch.randn(1, case.tokens, case.shape.dim, device=device, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for layer in engines.values():
        timed(layer, x, grad)  # warm-up
    for turn in range(repeats):
        for name, layer in engines.items():
            # The loop is up to hundreds of times slower; a few turns tell as much.
            if name != "loop" or turn < 3:
                seconds[name].append(timed(layer, x, grad))
    gc.collect()
    return {
        name: {
            "ms": 1e3 * statistics.median(times),
            "spread": (max(times) - min(times)) / statistics.median(times),
        }
        for name, times in seconds.items()
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.layer", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--block", type=int, default=32, help="rows an expert's block is padded to")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", type=int, help="this many tokens instead of each case's own")
    parser.add_argument("--keep-memory", action="store_true", help="let glibc keep freed blocks")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args(argv)
    args.cases = [c for c in CASES if args.case in c.name]
    if not args.cases:
        names = ", ".join(c.name for c in CASES)
        parser.error(f"no case is called '{args.case}'; there are {names}")
    if args.tokens:
        args.cases = [replace(c, tokens=args.tokens) for c in args.cases]
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the table; write the figures where asked."""
    args = parse(argv)
    if args.keep_memory:
        KeepFreedMemory().keep()
    threads = torch.get_num_threads()
    print(f"{args.dtype} on {args.device}, {threads} threads, torch {torch.__version__}")
    print(
        f"{'case':36}{'dense ms':>9}{'ours ms':>9}{'spread':>8}{'x':>7}{'loop ms':>9}{'loop x':>8}"
    )
    rows = []
    for one in args.cases:
        figures = measure(one, DTYPES[args.dtype], args.device, args.block, args.repeats)
        floor = figures["dense"]["ms"]
        ours, loop = figures["grouped"], figures["loop"]
        print(
            f"{one.name:36}{floor:9.1f}{ours['ms']:9.1f}{ours['spread']:7.0%}"
            f"{ours['ms'] / floor:8.2f}{loop['ms']:9.1f}{loop['ms'] / floor:8.2f}",
            flush=True,
        )
        rows.append({"case": one.name, **asdict(one.shape), "tokens": one.tokens, **figures})
    if args.json:
        args.json.write_text(json.dumps({"dtype": args.dtype, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
