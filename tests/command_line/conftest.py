"""A folder with the stand-in's configuration, and the program run there in this process."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.program import build, run
from tests.command_line.standin import Task

PLUGIN = "tests.command_line.standin"
FILES = {
    "nets/tiny.yaml": """
        class_path: {0}.Net
        init_args:
          dim: 6
          layout:
            class_path: {0}.Layout
            init_args:
              sparse:
                class_path: {0}.Sparse
                init_args:
                  num_heads: 2
                  router: {{class_path: {0}.TopK, init_args: {{top_k: 2}}}}
        """,
    "runs/run.yaml": """
        name: toy
        model:
          class_path: {0}.Toy
          init_args:
            net: ../nets/tiny.yaml
            optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.01}}}}
        data:
          class_path: {0}.Data
          init_args:
            dim: ${{model.init_args.net.init_args.dim}}
        trainer: {{max_steps: 2, accelerator: cpu, log_every_n_steps: 1, num_sanity_val_steps: 0}}
        """,
}


class Outcome(NamedTuple):
    """How the program ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(PLUGIN).replace("\n        ", "\n").lstrip())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    return tmp_path


@pytest.fixture
def program(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`program("fit", ...)` runs it on the stand-in's configuration."""

    def call(command: str, *options: str) -> Outcome:
        status = run([command, "--plugin", PLUGIN, "--config", "runs/run.yaml", *options], Task)
        return Outcome(status, *capsys.readouterr())

    return call


@pytest.fixture
def built(folder: Path) -> Callable[..., Command]:
    """`built(...)` constructs everything that `fit` would run."""

    def call(*options: str) -> Command:
        return build(["fit", "--plugin", PLUGIN, "--config", "runs/run.yaml", *options], Task)

    return call


@pytest.fixture
def evaluated(
    trained: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Outcome]:
    """evaluated("test", "vqa", ...) runs the program on a real task's data, in a new folder."""
    from mhmoe_mm.tasks import base  # what these import is not for every test
    from tests.evaluated import configured

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def call(command: str, name: str, *options: str) -> Outcome:
        config = configured(trained(name), tmp_path)
        capsys.readouterr()
        status = run([command, "--config", str(config), *options], base.Task)
        return Outcome(status, *capsys.readouterr())

    return call
