"""Whether our layers have become slower against what they are measured beside.

    python -m tools.benchmarks.layer --dtype fp32 --json new.json
    python -m tools.benchmarks.guard new.json docs/figures/layer_fp32_avx512.json

Compares ratios, never times: our time over that of the dense net and over that of every peer, case
by case, in a file that a benchmark has just written and in one that was recorded. A ratio may be
larger than the recorded one by the share `--allow`, and by what both measurements spread. Ratios
depend on the machine too, so the files should come from machines alike; how each was measured is
printed. The exit code is 1 where a ratio is larger than that, and 2 where nothing can be compared.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from tools.benchmarks.engines import LOOP, OURS
from tools.benchmarks.turns import console
from tools.build_shards.errors import InputError, run_reporting


class Ratio(NamedTuple):
    """Our time over another's, in two files."""

    case: str
    other: str
    new: float
    recorded: float
    spread: float
    """What the four times vary by, as a share."""

    @property
    def growth(self) -> float:
        """By which share it has grown."""
        return self.new / self.recorded - 1


def ratios(new: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[Ratio]:
    """All that both files have."""
    before = {row["case"]: row for row in recorded["rows"]}
    for row in new["rows"]:
        old = before.get(row["case"], {})
        for other, figure in row.items():
            pair = (figure, old.get(other))
            if other in (OURS, LOOP) or not all(_timed(each) for each in pair):
                continue
            if not (_timed(row.get(OURS)) and _timed(old.get(OURS))):
                continue
            four = (*pair, row[OURS], old[OURS])
            yield Ratio(
                row["case"],
                other,
                row[OURS]["ms"] / figure["ms"],
                old[OURS]["ms"] / old[other]["ms"],
                sum(each["spread"] ** 2 for each in four) ** 0.5,
            )


def _timed(figure: Any) -> bool:
    return isinstance(figure, dict) and "ms" in figure


def read(path: Path) -> Mapping[str, Any]:
    """The file of a benchmark.

    Raises:
        InputError: it is none.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}.") from error
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(OURS in row and "case" in row for row in rows):
        raise InputError(
            f"{path} is no file of a benchmark of layers or steps: `--json` of "
            "tools.benchmarks.layer and tools.benchmarks.step writes such."
        )
    return content


def table_of(found: Sequence[Ratio], allow: float) -> Table:
    """A row a ratio, the worst first."""
    table = Table("case", "our time over that of", "recorded", "new", "growth", "")
    for column in table.columns[2:5]:
        column.justify = "right"
    for ratio in sorted(found, key=lambda r: -r.growth):
        verdict = "slower" if slower(ratio, allow) else ""
        table.add_row(
            ratio.case, ratio.other, f"{ratio.recorded:.2f}", f"{ratio.new:.2f}",
            f"{ratio.growth:+.0%} ±{ratio.spread:.0%}", verdict,
        )  # fmt: skip
    return table


def slower(ratio: Ratio, allow: float) -> bool:
    """Whether it has grown by more than is allowed and more than both measurements spread."""
    return ratio.growth > allow + ratio.spread


def compared(args: argparse.Namespace) -> int:
    """Print the comparison; the exit code."""
    new, recorded = read(args.new), read(args.recorded)
    found = list(ratios(new, recorded))
    if not found:
        raise InputError(f"{args.new} and {args.recorded} have no case in common.")
    tell = console()
    tell.print(f"new: {new.get('told', '?')}\nrecorded: {recorded.get('told', '?')}")
    tell.print(table_of(found, args.allow))
    worse = [ratio for ratio in found if slower(ratio, args.allow)]
    tell.print(f"{len(worse)} of {len(found)} ratios have grown by more than {args.allow:.0%}")
    return int(bool(worse))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.guard", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("new", type=Path, metavar="NEW.json", help="what a benchmark has just written")
    add("recorded", type=Path, metavar="RECORDED.json", help="such as those of docs/figures")
    add("--allow", type=float, default=0.15, metavar="SHARE", help="growth that may be (0.15)")
    args = parser.parse_args(argv)
    return run_reporting(lambda: compared(args), "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
