"""The examples of the README and of the page about using models run, on real checkpoints."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mhmoe_mm.exporting import export
from mhmoe_mm.inference import METHODS
from tests.datamodules.conftest import png
from tests.test_readme import ROOT, blocks
from tests.trained import KINDS, Trained

PAGE = ROOT / "docs/using_models.md"
PLUGIN = "from mhmoe_mm.models.ffn import GeluFFN as Mine\n"


@pytest.fixture
def folder(
    trained: Callable[[str], Trained],
    language_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The working folder, with every file that the examples name."""
    for name in KINDS:
        made = trained(name)
        shutil.copy(made.checkpoint, tmp_path / f"{name}.ckpt")
        checkpoints = tmp_path / "runs" / name / "version_0/checkpoints"
        checkpoints.mkdir(parents=True)
        shutil.copy(made.checkpoint, checkpoints / "last.ckpt")
    shutil.copy(language_run / "checkpoints/last.ckpt", tmp_path / "language.ckpt")
    export(trained("vqa").checkpoint, tmp_path / "vqa_model")
    content = torch.load(trained("vqa").checkpoint, weights_only=True)
    layout = content["hyper_parameters"]["net"]["init_args"]["layout"]["init_args"]
    layout["dense"]["class_path"] = "my_nets.Mine"
    torch.save(content, tmp_path / "mine.ckpt")
    (tmp_path / "my_nets.py").write_text(PLUGIN)
    (tmp_path / "dog.png").write_bytes(png(7))
    with Image.open(tmp_path / "dog.png") as image:
        image.resize((41, 23)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", [ROOT / "README.md", PAGE], ids=lambda page: page.stem)
def test_every_example_is_short_and_prints_something(
    page: Path, folder: Path, capsys: pytest.CaptureFixture[str]
):
    names: dict[str, object] = {}
    examples = blocks(page, "python")
    assert any("mhmoe_mm.load" in example for example in examples)
    for example in examples:
        if page == PAGE or "mhmoe_mm.load" in example:
            assert len(example.splitlines()) <= 5, example
        exec(compile(example, page.name, "exec"), names)
        assert capsys.readouterr().out.strip(), example
    sys.modules.pop("my_nets", None)


def test_every_method_has_an_example():
    examples = "".join(blocks(PAGE, "python"))
    methods = [method for several in METHODS.values() for method in several]
    assert [method for method in methods if f"model.{method}(" not in examples] == []


def test_the_table_says_what_the_models_can_do():
    for task, methods in METHODS.items():
        listed = ", ".join(f"`{method}`" for method in methods)
        assert f"| `{task.__name__}` | {listed} |" in PAGE.read_text()
