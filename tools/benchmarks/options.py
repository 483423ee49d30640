"""What benchmarks are asked: which shapes, which engines, in which precision."""

import argparse
from dataclasses import replace
from pathlib import Path

from tools.benchmarks.cases import CASES
from tools.benchmarks.engines import DTYPES
from tools.benchmarks.peers import PEERS, installed
from tools.benchmarks.turns import CLOCKS


def parser_of(program: str, description: str, device: str) -> argparse.ArgumentParser:
    """The options that they share; `device` is where layers run unless told otherwise."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tools.benchmarks.{program}", description=description
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default=device)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--tokens", type=int, help="this many tokens instead of each case's own")
    add_peers(parser)
    parser.add_argument(
        "--block",
        type=int,
        help="rows an expert's block is padded to (8, or 32 where the device multiplies in tiles)",
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Which peers to measure."""
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="which; default: those installed")


def add_turns(parser: argparse.ArgumentParser) -> None:
    """How engines take turns, and where a picture of them goes."""
    parser.add_argument("--no-loop", action="store_true", help="leave out one expert at a time")
    parser.add_argument("--repeats", type=int, default=9, help="turns of each engine (9)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--keep-memory", action="store_true", help="let glibc keep freed blocks")
    parser.add_argument("--png", type=Path, help="also draw them")


def check_turns(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program where these options do not go together."""
    if args.repeats < 1:
        parser.error("--repeats is 1 or more")
    if args.device != "cpu" and args.clock == "cpu":
        parser.error("--clock cpu does not see what a GPU does")


def check_peers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """`peers` as a list; ends the program where one is not installed."""
    known = installed()
    if args.peers is None:
        args.peers = known
    if missing := [name for name in args.peers if name not in known]:
        parser.error(f"{missing[0]} is not installed: pip install 'mhmoe-mm[peers]'")


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options, `cases` and `peers` as lists; ends the program where there are none such."""
    args = parser.parse_args(argv)
    args.cases = [c for c in CASES if args.case in c.name]
    if not args.cases:
        names = ", ".join(c.name for c in CASES)
        parser.error(f"no case is called '{args.case}'; there are {names}")
    if args.tokens:
        args.cases = [replace(c, tokens=args.tokens) for c in args.cases]
    check_peers(parser, args)
    return args
