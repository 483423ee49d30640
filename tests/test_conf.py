"""Every YAML of `conf/` says what it is and can be built; tests of their own have nets, recipes."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task
from tests.exported_tokenizer import export_tokenizer
from tools.compare.comparison import read_comparison
from tools.compare.nets import write_nets
from tools.compare.report import verdict

CONF = Path(__file__).parents[1] / "conf"
TRAINERS = sorted((CONF / "trainer").glob("*.yaml"))
RUNS = sorted((CONF / "runs").glob("*.yaml"))
EVERY_RUN = sorted((CONF / "runs").rglob("*.yaml"))
COMPARISONS = sorted((CONF / "comparisons").glob("*.yaml"))
UNEQUAL = {"ablation_experts"}
"""Comparisons whose models differ in cost on purpose."""


def header(path: Path) -> str:
    """The comment that a file starts with."""
    match = re.match(r"(?:#.*\n)+", path.read_text())
    return match[0] if match else ""


def make_files(run: Path, tokenizer: str) -> None:
    """The files that a run's task reads while it is built; what is in them does not matter here."""
    content = yaml.safe_load(run.read_text())
    model = content["model"]["init_args"]
    if model.get("tokenizer") == "${data.init_args.tokenizer}":
        model["tokenizer"] = content["data"]["init_args"]["tokenizer"]
    target = model.get("image_target", {})
    codebook = target.get("init_args", {}).get("path")
    for path in filter(None, [codebook, model.get("answers"), model.get("tokenizer")]):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if codebook is not None:
        net = yaml.safe_load((run.parent / model["net"]).read_text())
        size = net["init_args"].get("patch_size", 16)  # the default of BEiT3
    if target.get("class_path", "").endswith("VQKDCodes"):
        export_tokenizer(Path(codebook), net["init_args"].get("image_size", 224), size)
    elif codebook is not None:
        codes = {"code": torch.zeros(5, 3 * size**2)}
        save_file(codes, codebook, metadata={"patch_size": str(size)})
    if "answers" in model:
        Path(model["answers"]).write_text('["yes", "no"]')
    if "tokenizer" in model:
        shutil.copy(tokenizer, model["tokenizer"])


@pytest.mark.parametrize("path", [*TRAINERS, *EVERY_RUN], ids=lambda path: path.stem)
def test_a_file_says_how_to_run_it_and_what_to_expect(path: Path):
    for word in ["Run", "Cost", "Expect"] if path in EVERY_RUN else ["Run"]:
        assert re.search(rf"^# {word} ", header(path), re.MULTILINE), f"no # {word} in {path}"


@pytest.mark.parametrize("trainer", TRAINERS, ids=lambda path: path.stem)
@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.stem)
def test_every_run_can_be_built_with_every_trainer(
    trainer: Path, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_path: str
):
    monkeypatch.chdir(tmp_path)
    make_files(run, tokenizer_path)
    before = set(tmp_path.rglob("*"))
    files = ["--config", str(trainer), "--config", str(run)]
    # A trainer for hardware that may not be here is read, and then put on the CPU.
    with torch.device("meta"):  # weights without memory, so that size does not matter
        built = build(["fit", *files, "--trainer.accelerator", "cpu"], Task)
    assert next(built.model.net.parameters()).is_meta
    assert built.datamodule is not None
    assert built.trainer.max_steps > 0 or built.trainer.max_epochs
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_stage_of_a_comparison_is_a_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(CONF.parent)
    monkeypatch.setattr(Command, "instantiate_classes", lambda command: None)
    assert re.search(r"^# Run +python -m tools.compare conf/comparisons/", header(path))
    comparison, costs = write_nets(read_comparison(path), tmp_path)
    assert comparison.name == path.stem
    assert costs.keys() == comparison.shapes.keys()
    if comparison.reference is not None and path.stem not in UNEQUAL:
        lines = verdict(comparison, costs)
        assert not [line for line in lines if line.startswith("NOT MATCHED")]
    nets = set()
    for stages in comparison.models.values():
        for stage in stages:
            built = build(["fit", *stage], Task)
            assert built.config.fit.trainer.max_steps > 0
        build(["test", *stages[-1], *comparison.test], Task)
        nets.add(str(built.config.fit.model.init_args.net))
    assert len(nets) == len(comparison.models)
