"""`python -m tools.demo`."""

import sys

from tools.demo.cli import main

if __name__ == "__main__":
    sys.exit(main())
