"""`tools.sweep` with a program that only pretends to train, to be run as a module."""

import csv
import json
import sys
from pathlib import Path

import yaml

from tools.compare import program
from tools.sweep import trials
from tools.sweep.cli import main

STUB = """
import json, os, pathlib, sys, time
from tools.compare.program import end_with_parent
end_with_parent()
command, *given = sys.argv[1:]
options = dict(zip(given[::2], given[1::2]))
folder = pathlib.Path(options["--trainer.default_root_dir"], options["--name"])
version = folder / f"version_{len(list(folder.glob('version_*')))}"
version.mkdir(parents=True)
x = float(options["--model.x"])
def note(what):
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps([what, x, str(folder), os.getpid()]) + "\\n")
note("begun")
config = {"name": "?", "model": {"x": x}, "ckpt_path": "auto"}
(version / "config.yaml").write_text(json.dumps(config))
rows = ["epoch,step,val/loss"]
for step in range(int(options.get("--steps", 4))):
    time.sleep(float(options.get("--pause", 0)))
    if options.get("--worst") == options["--model.x"] and step == 1:
        sys.exit("mhmoe-mm: error: the loss is not finite.")
    if options.get("--ended") == options["--model.x"]:
        sys.exit(143)
    rows.append(f"0,{step},{x + 1 / (step + 1)}")
    part = version / "part"
    part.write_text("\\n".join(rows) + "\\n")
    part.replace(version / "metrics.csv")
note("ended")
"""
PROGRAM = (sys.executable, "-c", STUB)

FILE = {
    "name": "hill",
    "command": "--config run.yaml",
    "space": {"model.x": {"choices": [3, 2, 7, 5, 11, 13]}},
    "metric": "val/loss",
    "sampler": "grid",
    "budget": {"trials": 50},
}


def write(more: str = "", **changes) -> None:
    """The sweep file: changed, without what is None, with more options of the training."""
    content = {key: value for key, value in {**FILE, **changes}.items() if value is not None}
    content["command"] += f" {more}"
    Path("hill.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def sweep(*options: str, subcommand: str = "run", more: str = "", **changes) -> int:
    """The exit status of the program in this process."""
    write(more, **changes)
    return main([subcommand, "hill.yaml", *options])


def calls(what: str = "begun") -> list[float]:
    """The values of x that were trained, in the order of time."""
    path = Path("calls.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line[1] for line in lines if line[0] == what]


def rows() -> list[dict[str, str]]:
    with Path("runs/hill/trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    program.PROGRAM = PROGRAM
    trials.POLL_S = 0.02
    sys.exit(main())
