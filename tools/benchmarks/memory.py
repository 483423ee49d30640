"""How much memory a sparse layer takes at most in a step, beside a formula and peers.

    python -m tools.benchmarks.memory --dtype bf16 --case d512-h2 --experts 8 32 128

Bytes of tensors are counted as they come and go, whoever holds them; what there was before (weights
and what the layer reads) is left out. `--resident` runs the layer alone in a process of its own
and says how much memory that process took, the program and the weights included.
"""

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from mhmoe_mm.moe import AutoBackend, native_ops
from tools.benchmarks.cases import Case
from tools.benchmarks.engines import DTYPES, NEEDS_CUDA, OURS, TRITON, made, ours
from tools.benchmarks.options import parsed, parser_of
from tools.benchmarks.peers import Unfit
from tools.plan.ledger import Ledger


def expected(case: Case, dtype: torch.dtype, device: str, block: int | None) -> int:
    """What our layer takes at most, in bytes: the formula of `docs/performance.md`."""
    shape = case.shape
    native = device == "cpu" and not native_ops.unfit(dtype)
    backend = AutoBackend(block)
    of_grouped = backend.grouped.block_of(dtype, torch.device(device))
    block = backend.block if native else of_grouped
    rows = (-(-(case.rows + shape.num_experts * (block - 1)) // block) + 1) * block
    matrix = shape.num_experts * shape.width * shape.hidden
    if native:
        # What rows read and their gradients, in two layouts; what is before the activation and its
        # gradient; the gradients of both matrices.
        experts = rows * (3 * shape.width + 2 * shape.hidden) + 2 * matrix
    else:
        # The largest moment is the backward of one of the experts' two products. In that of the
        # second there are the rows that it read and answered, what is before and after the
        # activation, and the gradient of that; in that of the first the gradients of both matrices.
        second = rows * (2 * shape.width + 3 * shape.hidden) + matrix
        first = rows * (2 * shape.width + shape.hidden) + 2 * matrix
        experts = max(first, second)
    tokens = case.tokens * shape.dim * (4 if shape.num_heads > 1 else 2)
    scores = 3 * case.tokens * shape.num_heads * shape.num_experts  # in float32
    indices = 4 * case.rows + 3 * rows  # of 8 bytes
    return (experts + tokens) * dtype.itemsize + 4 * scores + 8 * indices


def peak(layer: nn.Module, case: Case, dtype: torch.dtype, device: str) -> int:
    """Bytes at most, beyond weights and input."""
    x = torch.randn(1, case.tokens, case.shape.dim, device=device, dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    ledger = Ledger([*layer.parameters(), x, grad])
    before = ledger.alive
    with ledger:
        y = layer(x)
        (y[0] if isinstance(y, tuple) else y).backward(grad)
    return ledger.peak - before


def told(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


def row(
    case: Case, peers: Sequence[str], dtype: torch.dtype, device: str, block: int | None
) -> dict:
    """Bytes by engine, and a reason where there are none."""
    formula = expected(case, dtype, device, block)
    found: dict[str, int | str] = {"formula": formula}
    for name in (*ours(device), *peers):
        try:
            layer = made(name, case, block).to(device, dtype)
            found[name] = peak(layer, case, dtype, device)
        except Unfit as reason:
            found[name] = str(reason)
        except (RuntimeError, ValueError) as error:
            found[name] = f"fails: {str(error).splitlines()[0]}"
    return {"case": case.name, "experts": case.shape.num_experts} | found


def resident(case: Case, dtype: torch.dtype, block: int | None) -> int:
    """Largest resident size of this process after a step of our layer, in bytes."""
    layer = made(OURS, case, block).to(dtype)
    x = torch.randn(1, case.tokens, case.shape.dim, dtype=dtype).requires_grad_()
    layer(x)[0].sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = parser_of("memory", "How much memory a sparse layer takes.", "cpu")
    parser.add_argument("--experts", type=int, nargs="*", help="each case with so many experts")
    parser.add_argument("--resident", action="store_true", help="of a whole process, ours alone")
    args = parsed(parser, argv)
    if args.experts:
        args.cases = [
            replace(c, shape=replace(c.shape, num_experts=experts))
            for c in args.cases
            for experts in args.experts
        ]
    args.cases = list(dict.fromkeys(args.cases))
    if args.resident and len(args.cases) != 1:
        parser.error("--resident is of one case: name it with --case and --experts")
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the table; write the figures where asked."""
    args = parse(argv)
    dtype, tell = DTYPES[args.dtype], Console(width=None if sys.stdout.isatty() else 140)
    if args.resident:
        case = args.cases[0]
        size = resident(case, dtype, args.block)
        tell.print(f"{case.name}, {case.rows:,} rows, {args.dtype}: {size / 1e9:.2f} GB resident")
        return 0
    rows = [row(case, args.peers, dtype, args.device, args.block) for case in args.cases]
    others = [name for name in ours(args.device) if name != OURS] + args.peers
    table = Table("case", "formula", "ours", "ours / formula", *others)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in rows:
        cells = [each[name] for name in others]
        table.add_row(
            each["case"], told(each["formula"]), told(each[OURS]),
            f"{each[OURS] / each['formula']:.2f}",
            *(cell.split(":")[0] if isinstance(cell, str) else told(cell) for cell in cells),
        )  # fmt: skip
    tell.print(
        f"{args.dtype} on {args.device}, torch {torch.__version__}; beyond weights and input"
    )
    if TRITON not in others:
        tell.print(NEEDS_CUDA)
    tell.print(table)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
