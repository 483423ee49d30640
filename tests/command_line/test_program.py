"""Whatever goes wrong is one sentence that names the culprit, and leaves nothing behind."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mhmoe_mm.command_line.program import run
from tests.command_line.conftest import PLUGIN, Outcome
from tests.command_line.standin import Task

Program = Callable[..., Outcome]
STANDIN = PLUGIN


def sentence(outcome: Outcome) -> str:
    """The one line that the program said, less its prefix."""
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("mhmoe-mm: error: ")]
    assert "Traceback" not in outcome.err
    return line.removeprefix("mhmoe-mm: error: ")


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.max_step", "3"],
            "--trainer.max_step: there is no key 'trainer.max_step'; "
            "did you mean 'trainer.max_steps'?",
        ),
        (["--trainer.max_steps", "three"], "--trainer.max_steps: expected int, got 'three'."),
        (["--model.net.dim", "three"], "--model.net.dim: expected int, got 'three'."),
        (
            ["--model.net.dimm", "3"],
            f"--model.net.dimm: {STANDIN}.Net has no parameter 'dimm'; did you mean 'dim'?",
        ),
        (
            ["--model.nett.dim", "3"],
            f"--model.nett.dim: {STANDIN}.Toy has no parameter 'nett'; did you mean 'net'?",
        ),
        (
            ["--model.net.layout.sparse.router.bogus", "3"],
            f"--model.net.layout.sparse.router.bogus: {STANDIN}.TopK has no parameter 'bogus'; "
            "it has width, num_experts, top_k.",
        ),
        (["--model", f"{STANDIN}.Toyy"], f"--model: {STANDIN} has no Toyy; did you mean Toy?"),
        (["--model.net", "nets/none.yaml"], "--model.net: no such file: nets/none.yaml."),
        (["--config", "none.yaml"], "File does not exist: '{folder}/none.yaml'."),
        (["stray"], "unexpected argument: stray."),
        (
            ["--model.net.dim", "${data.init_args.none}"],
            "command line: model.net.dim: its ${{...}} refers to data.init_args.none, "
            "and there is no such key.",
        ),
        (["--model.net.layout.sparse.num_heads", "5"], "dim=6 is not divisible by num_heads=5."),
        (["--model.net.layout.sparse.router.top_k", "9"], "top_k=9 exceeds num_experts=5."),
        (["--ckpt_path", "none.ckpt"], "No such checkpoint: none.ckpt."),
        (
            ["--ckpt_path", "https://example.org/a.ckpt"],
            "Checkpoints are not read from addresses: "
            "download https://example.org/a.ckpt and name the file.",
        ),
        (
            ["--ckpt_path", "last"],
            "No last checkpoint of run 'toy': "
            "there is no runs/toy/version_*/checkpoints/last.ckpt that is whole.",
        ),
        (
            ["--ckpt_path", "runs/run.yaml"],
            "runs/run.yaml is not a checkpoint, or not a whole one.",
        ),
        (["--data.fault", "folder"], "nowhere/train: No such file or directory."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_refused_command_line_is_one_sentence_and_leaves_nothing(
    program: Program, folder: Path, options: list[str], said: str
):
    before = files(folder)
    outcome = program("fit", *options)
    assert (outcome.status, sentence(outcome)) == (2, said.format(folder=folder))
    assert files(folder) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "trainer:\n  max_epoch: 3\n",
            "more.yaml:2: trainer.max_epoch: there is no key 'trainer.max_epoch'; "
            "did you mean 'trainer.max_epochs'?",
        ),
        (
            "model:\n  init_args:\n    net:\n      init_args:\n        dimm: 3\n",
            f"more.yaml:5: model.net.dimm: {STANDIN}.Net has no parameter 'dimm'; "
            "did you mean 'dim'?",
        ),
        (
            "trainer:\n  max_epochs: three\n",
            "more.yaml:2: trainer.max_epochs: expected int, null, got 'three'.",
        ),
        ("trainer: [1\n", "more.yaml:2: expected ',' or ']', but got '<stream end>'."),
        (
            "trainer:\n  max_steps: ${model.none}\n",
            "more.yaml:2: trainer.max_steps: its ${...} refers to model.none, "
            "and there is no such key.",
        ),
        (
            "model:\n  init_args:\n    net: nets/odd.yaml\n",
            f"nets/odd.yaml:2: model.net.dims: {STANDIN}.Net has no parameter 'dims'; "
            "did you mean 'dim'?",
        ),
    ],
)
def test_a_refused_file_is_named_with_the_line(
    program: Program, folder: Path, text: str, said: str
):
    (folder / "more.yaml").write_text(text)
    (folder / "nets/odd.yaml").write_text(f"class_path: {STANDIN}.Net\ninit_args: {{dims: 3}}\n")
    outcome = program("fit", "--config", "more.yaml")
    assert (outcome.status, sentence(outcome)) == (2, said)


def test_what_is_missing_is_named(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["fit", "--trainer.max_steps", "3"], Task) == 2
    assert sentence(Outcome(2, *capsys.readouterr())).startswith("data and model must be given")


def test_a_denied_module_is_not_even_imported(program: Program, folder: Path):
    (folder / "evil.py").write_text("open('ran', 'w')\nclass X: ...\n")
    for option in ("--model.net", "--model.net.layout.sparse.router", "--trainer.callbacks+"):
        said = sentence(program("fit", option, "evil.X"))
        assert said == (
            f"{option}: evil.X may not be imported from a configuration; "
            "if you trust the package, add `--plugin evil`."
        )
    assert not (folder / "ran").exists()
    assert "evil" not in sys.modules


def test_a_plugin_may_be_named(program: Program, folder: Path, monkeypatch: pytest.MonkeyPatch):
    lines = "from lightning.pytorch import Callback\nclass Extra(Callback): ...\n"
    for module in ("trusted_one", "trusted_two"):
        (folder / f"{module}.py").write_text(lines)
    monkeypatch.setattr(sys, "path", [*sys.path])
    outcome = program("fit", "--plugin", "trusted_one", "--trainer.callbacks+", "trusted_one.Extra")
    assert outcome.status == 0
    monkeypatch.setenv("MHMOE_PLUGINS", "trusted_two")
    assert program("fit", "--trainer.callbacks+", "trusted_two.Extra").status == 0
    assert "trusted_none cannot be imported" in sentence(program("fit", "--plugin", "trusted_none"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_bad_data_in_training_is_one_sentence(program: Program, workers: str):
    outcome = program(
        "fit", "--data.fault", "image", "--data.workers", workers, "--trainer.max_steps=9"
    )
    assert outcome.status == 1
    assert sentence(outcome) == "00003.tar: sample 000000005: the image ends after 17 bytes."


@pytest.mark.parametrize(
    "options",
    [
        ["--model.net", f"{STANDIN}.BuggyNet"],
        ["--data.fault", "bug", "--trainer.max_steps=9"],
        ["--data.fault", "bug", "--data.workers", "1", "--trainer.max_steps=9"],
    ],
)
def test_a_bug_keeps_its_traceback(program: Program, options: list[str]):
    outcome = program("fit", *options)
    assert outcome.status == 1
    assert "Traceback" in outcome.err
    assert "TypeError: a bug" in outcome.err
    assert "mhmoe-mm: error" not in outcome.err


def test_debug_shows_the_traceback_of_a_refusal(program: Program):
    shown = program("fit", "--debug", "stray")
    assert shown.status == 2
    assert "Traceback" in shown.err
    assert shown.err.splitlines()[-1] == "mhmoe-mm: error: unexpected argument: stray."


def test_a_run_without_a_terminal_prints_plain_lines(program: Program):
    outcome = program("fit", "--trainer.max_epochs", "1", "--trainer.max_steps", "-1")
    assert outcome.status == 0
    last, validated = sorted(outcome.out.splitlines())
    assert last.startswith("epoch 0  step 4/4  ")
    assert "step/s  train/square" in last
    assert validated.startswith("epoch 0  step 4/4  validated  val/square 0.")
    assert not set("━┃\r\x1b") & set(outcome.out)
