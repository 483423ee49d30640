"""`python -m tools.lm_eval`."""

import sys

from tools.lm_eval.cli import main

sys.exit(main())
