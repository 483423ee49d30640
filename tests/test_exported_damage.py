"""An exported model that was changed, cut or lost in part is refused in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mhmoe_mm
from mhmoe_mm.checkpoint import read_weights
from mhmoe_mm.exporting import export
from mhmoe_mm.storage.sealed import Damaged
from mhmoe_mm.storage.whole import file_sha256


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    """An exported model of VQA."""
    export(trained("vqa").checkpoint, tmp_path / "vqa")
    return tmp_path / "vqa"


def widened(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["task"]["init_args"]["net"]["init_args"]["dim"] = 42
    (folder / "config.json").write_text(json.dumps(config))


def edited(**entries) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | entries
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("square", "cube"))


def one_bit(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 4
    (folder / "model.safetensors").write_bytes(content)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-9]) and None


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut": (cut("model.safetensors"), r"model\.safetensors is not what was exported: its"),
    "a bit of the weights": (one_bit, r"model\.safetensors is not what was exported: its sha256"),
    "no weights": (without("model.safetensors"), r"is not whole: model\.safetensors is missing"),
    "no configuration": (without("config.json"), r"is no exported model, or it lacks its config"),
    "no tokenizer": (without("tokenizer.json"), r"is not whole: tokenizer\.json is missing"),
    "no answers": (without("answers.json"), r"is not whole: answers\.json is missing"),
    "another tokenizer": (other_tokenizer, r"tokenizer\.json is not what was exported: its sha256"),
    "answers cut": (cut("answers.json"), r"answers\.json is not what was exported: its sha256"),
    "configuration cut": (cut("config.json"), r"config\.json is damaged: it is not JSON"),
    "no task": (edited(task=None), r"config\.json is damaged: it lacks what it should say"),
    "no sums": (edited(files={}), r"model\.safetensors is not what was exported: its sha256"),
    "files elsewhere": (edited(files={"../a": ""}), r"is not whole: \.\./a is missing"),
    "a later version": (edited(format=2), r"has the format 2 \(mhmoe-mm .*\); this version reads"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused_in_a_sentence(folder, what):
    damage, why = DAMAGE[what]
    damage(folder)
    for read in (mhmoe_mm.load, read_weights):
        with pytest.raises(Damaged, match=why):
            read(folder)


def test_a_network_of_another_width_is_refused(folder):
    widened(folder)
    with pytest.raises(ValueError, match=r"vqa cannot be built here: .*size mismatch for net\."):
        mhmoe_mm.load(folder)


def test_what_is_no_tensor_is_not_read_although_its_sum_is_right(folder):
    torch.save({"state_dict": {}}, folder / "model.safetensors")
    edited(files={"model.safetensors": file_sha256(folder / "model.safetensors")})(folder)
    with pytest.raises(Damaged, match="holds files that cannot be read"):
        mhmoe_mm.load(folder)


def test_classes_from_elsewhere_are_not_imported(folder):
    config = json.loads((folder / "config.json").read_text())
    config["task"]["init_args"]["net"]["class_path"] = "os.system"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"needs os\.system, which is not of this library"):
        mhmoe_mm.load(folder)
