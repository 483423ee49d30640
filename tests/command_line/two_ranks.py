"""Run by test_predict on ranks: the commands of a file, one after the other."""

import json
import os
import sys
from pathlib import Path

from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    for command in json.loads(Path("commands.json").read_text()):
        assert run(command, Task) == 0, command
