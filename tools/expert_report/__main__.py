"""`python -m tools.expert_report`."""

import sys

from tools.expert_report.cli import main

if __name__ == "__main__":
    sys.exit(main())
