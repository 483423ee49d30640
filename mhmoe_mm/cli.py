"""The program `mhmoe-mm fit|validate|test|predict --config ...`; it defines no classes (see
`command_line`)."""

import sys

from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task


def main() -> None:
    """Carry out the command line; exit with 0, with 2 if it was refused, or with 1 if it failed
    while running."""
    sys.exit(run(sys.argv[1:], Task))


if __name__ == "__main__":
    main()
