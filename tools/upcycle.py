"""Make a sparse model from a trained dense one, to train on from there.

    python -m tools.upcycle runs/dense/version_0 --net conf/nets/mini.yaml --out upcycled
    mhmoe-mm fit --config RUN.yaml --model.net conf/nets/mini.yaml --model.init_from upcycled

CHECKPOINT is one file, the folder of a run for its last one, or an exported model, of any encoder
or decoder; NET the same network with sparse layers in place of dense ones. Experts of SparseMoE
become copies of the dense net, or slices of it, and the model computes what it did before. MHMoE
comes near: how near is said for each layer. With --optimizer-state a training that starts from the
folder goes on with AdamW's moments where they make sense.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mhmoe_mm.upcycling.filling import Start
from mhmoe_mm.upcycling.model import upcycle
from tools.build_shards.errors import InputError, run_reporting
from tools.plan.settings import read_net


def main(argv: Sequence[str] | None = None) -> int:
    """Run upcycle; returns the exit code."""
    given = _parser().parse_args(argv)
    return run_reporting(lambda: _run(given), "Interrupted; nothing was written.")


def _run(given: argparse.Namespace) -> int:
    try:
        start = Start(given.noise, given.router_std, given.seed)
        net = read_net(given.net)
        done = upcycle(
            given.checkpoint, net, given.out, start, given.tokenizer, given.plugin, given.overwrite,
            given.optimizer_state,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error
    for layer in done:
        print(f"{layer.path}: {layer.kind}, relative error {layer.error:.2g}")
    state = ", with the optimizer's state" if given.optimizer_state else ""
    print(
        f"{given.out}: {len(done)} layers turned{state}; start from it with --model.init_from "
        f"{given.out}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.upcycle", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a checkpoint, the folder of a run, or an export")
    add("--net", type=Path, required=True, metavar="NET", help="the sparse network, a YAML")
    add("--out", type=Path, required=True, metavar="FOLDER", help="to be written")
    add("--noise", type=float, default=0.0, metavar="SHARE", help="on experts, of their deviation")
    add("--router-std", type=float, metavar="STD", help="of linear routers (default: see docs)")
    add("--seed", type=int, default=0, help="of routers and noise")
    add("--overwrite", action="store_true", help="replace an exported model that is there")
    add("--optimizer-state", action="store_true", help="take over AdamW's moments too")
    add("--tokenizer", metavar="FILE", help="of a checkpoint that does not keep its tokenizer.json")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    return parser


if __name__ == "__main__":
    sys.exit(main())
