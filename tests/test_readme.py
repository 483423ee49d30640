"""The commands in the README and in `docs/` are true: what they name exists."""

import io
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest

from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README.md"), *ROOT.glob("docs/*.md")])
ELSEWHERE = (
    "git",
    "cd",
    "pip",
    "uv",
    "export",
    "tensorboard",
    "mkdir",
    ".",
    "source",
    "ls",
    "cat",
    "nproc",
)
"""Programs that are not ours; their lines are not checked."""
PLUGIN = """
from mhmoe_mm.moe import TopKRouter

class FirstExperts(TopKRouter):
    ...
"""


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in these languages."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The command lines of a page, continued lines joined."""
    text = "\n".join(blocks(page, "bash", "sh", "console", "shell")).replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ") for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def words(line: str) -> list[str]:
    """The words of a command, without settings of the environment before it."""
    parts = shlex.split(line, comments=True)
    while parts and re.match(r"\w+=", parts[0]):
        parts.pop(0)
    return [parts[0].removeprefix(".venv/bin/"), *parts[1:]]


@cache
def help_of(module: str) -> str:
    """What `python -m module --help` prints; ours run in this process, which has their imports."""
    if not module.startswith("tools."):
        command = [sys.executable, "-m", module, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(printed),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*in sys.modules after import", RuntimeWarning)
        patch.setattr(sys, "argv", [module, "--help"])
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return printed.getvalue()


def check_module(module: str, options: list[str]) -> None:
    """A module can be run, and knows the options; those of a subcommand, and those behind `--` for
    another program, are left to its tests.
    """
    text = help_of(module)
    options = options[: options.index("--")] if "--" in options else options
    if options and not options[0].startswith("-") and text.split("\n\n")[0].endswith("..."):
        assert options[0] in text
        return
    for option in options:
        if option.startswith("--"):
            assert option.partition("=")[0] in text, f"{module} has no {option}"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like the repository to commands, where reading is all that they do."""
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "my_routers.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(Command, "instantiate_classes", lambda command: None)
    monkeypatch.setattr(Command, "_parse_ckpt_path", lambda command: None)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_are_true(
    page: Path, repository: Path, capsys: pytest.CaptureFixture[str]
):
    for block in blocks(page, "yaml"):
        if name := re.match(r"# file: (\S+)", block):
            (repository / name[1]).write_text(block)
    for line in commands(page):
        program, *options = words(line)
        if program == "make":
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(options) <= set(targets), line
        elif program in ("python", "python3") and options[0] == "-m":
            check_module(options[1], options[2:])
        elif program == "mhmoe-mm":
            if {"--help", "--print_config", "--model.help"} & set(options):
                with pytest.raises(SystemExit, match=r"^0$"):
                    build(options, Task)
            else:
                build(options, Task)
        else:
            assert program in ELSEWHERE, line


def test_there_are_pages_with_commands():
    assert sum(len(commands(page)) for page in PAGES) > 10


def test_the_python_examples_about_layers_run(capsys: pytest.CaptureFixture[str]):
    page = "docs/moe.md"  # those that need a checkpoint: test_using_models.py
    examples = blocks(ROOT / page, "python")
    assert examples
    for example in examples:
        exec(compile(example, page, "exec"), {})
    assert capsys.readouterr().out
