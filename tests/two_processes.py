"""Run by test_two_processes on ranks: the program on two ranks, in the folders of projects
that one process has prepared."""

import json
import sys
from pathlib import Path

from torch import distributed as dist
from torch.nn.utils import parameters_to_vector

from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task
from tests.official_runs import Project, working_in

STEPS = 3


def trained_apart(project: Project) -> float:
    """The largest difference between the weights of the ranks after a fit of a few steps."""
    options = ["--trainer.devices", "2", "--trainer.max_steps", str(STEPS)]
    options += ["--trainer.limit_val_batches", "0", "--name", "two"]
    with working_in(project.folder):
        command = build(["fit", "--config", "run.yaml", *options], Task)
        command.execute()
    assert command.trainer.global_step == STEPS
    assert command.trainer.world_size == 2
    own = parameters_to_vector(command.model.parameters()).detach()
    first = own.clone()
    dist.broadcast(first, 0)
    apart = (own - first).abs().max()
    dist.all_reduce(apart, op=dist.ReduceOp.MAX)
    return apart.item()


if __name__ == "__main__":
    plan = Path(sys.argv[1])
    apart = {}
    for name, folder in json.loads((plan / "projects.json").read_text()).items():
        project = Project(Path(folder), name)
        project.test("--trainer.devices", "2")
        apart[name] = trained_apart(project)
    if dist.get_rank() == 0:
        (plan / "apart.json").write_text(json.dumps(apart))
