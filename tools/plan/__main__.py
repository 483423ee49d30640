"""What a training needs of every GPU: memory, operations and traffic of a step, without a GPU.

    python -m tools.plan conf/nets/base_mh_moe.yaml --world 64 --expert-parallel 8 --recompute

The step runs as it would on one of the ranks, on tensors without content; a thousand ranks take
hardly longer than two. `tools.plan.measure` holds a plan against real processes.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mhmoe_mm.storage.whole import write_text
from tools.plan.settings import parsed, parser_of
from tools.plan.simulate import simulate
from tools.plan.table import as_json, written


def main(argv: Sequence[str] | None = None) -> int:
    """The program; its exit status: 0, or 2 if the command line was refused."""
    parser = parser_of("python -m tools.plan", __doc__)
    parser.add_argument("--world", type=int, required=True, metavar="N", help="ranks")
    parser.add_argument("--per-node", type=int, default=8, metavar="N", help="(default 8)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures, for programs")
    options, setting = parsed(parser, argv)
    if options.per_node < 1:
        parser.error(f"--per-node is a number of GPUs, 1 or more, got {options.per_node}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about tensors without content
            plan = simulate(setting)
    except ValueError as error:
        parser.error(str(error))
    Console(soft_wrap=True).print(written(plan, options.per_node))
    if options.json:
        write_text(options.json, as_json(plan, options.per_node))
    return 0


if __name__ == "__main__":
    sys.exit(main())
