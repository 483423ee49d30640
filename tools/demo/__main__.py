"""`python -m tools.demo`."""

import os
import sys

from tools.demo.cli import main

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Without Python's own end: it would stop threads that are still answering inside of torch,
    # which then aborts the process.
    os._exit(code)
