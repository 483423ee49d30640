"""An exported model is the checkpoint's to the bit, is verified, and runs nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import mhmoe_mm
from mhmoe_mm.checkpoint import load_weights, read_weights
from mhmoe_mm.exporting import export
from mhmoe_mm.inference import Model
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.decoder_cost import decoder_cost
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.storage.sealed import save_sealed
from mhmoe_mm.storage.sharded import save_sharded
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from tests.language import LINE
from tests.trained import CLASSES

KINDS = ["vqa", "retrieval", "captioning", "nlvr2", "classification", "language"]
RED = Image.new("RGB", (23, 31), (200, 30, 10))
ASKED: dict[str, Callable[[Model], Any]] = {
    "vqa": lambda model: model.answer(RED, ["is it red", "a star"], top=3),
    "retrieval": lambda model: model.score([RED], ["red", "a blue star"]).tolist(),
    "captioning": lambda model: model.caption(RED),
    "nlvr2": lambda model: model.is_true(RED, RED, "a star"),
    "classification": lambda model: model.classify(RED, top=3),
    "language": lambda model: (model.generate("so", 9, seed=1), model.log_likelihood(LINE)),
}


@pytest.fixture(scope="module")
def checkpoint(trained, language_run: Path) -> Callable[[str], Path]:
    """checkpoint(name) -> that of a task."""
    runs = {"language": language_run}
    return lambda name: (runs.get(name) or trained(name).run) / "checkpoints/last.ckpt"


@pytest.fixture
def made(checkpoint, tmp_path: Path) -> Callable[[str], Path]:
    """made(name) -> the folder of an exported model."""

    def make(name: str) -> Path:
        export(checkpoint(name), tmp_path / "shared" / name)
        return tmp_path / "shared" / name

    return make


def plain(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def sharded(path: Path, folder: Path) -> Path:
    """The same checkpoint as a folder of shards."""
    content = plain(path)
    weights = {"state_dict": content.pop("state_dict")}
    save_sharded(weights, content, folder)
    return folder


def equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        weight.dtype == others[name].dtype and torch.equal(weight, others[name])
        for name, weight in some.items()
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", ["one file", "shards"])
def test_the_model_is_the_same_to_the_bit_and_answers_as_before(
    checkpoint, name, kind, tmp_path, monkeypatch
):
    source = checkpoint(name)
    if kind == "shards":
        source = sharded(source, tmp_path / "a.ckpt")
    export(source, tmp_path / "out")
    before, kept = mhmoe_mm.load(source), plain(checkpoint(name))["state_dict"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").rename(tmp_path / "elsewhere/model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = mhmoe_mm.load("model")
    assert equal(load_file("model/model.safetensors"), kept)
    assert equal(model.task.state_dict(), kept)
    assert ASKED[name](model) == ASKED[name](before)
    with safe_open("model/model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_run_means_its_last_checkpoint(trained, tmp_path):
    export(trained("vqa").run, tmp_path / "out")
    assert equal(
        load_file(tmp_path / "out/model.safetensors"),
        plain(trained("vqa").checkpoint)["state_dict"],
    )


def test_the_folder_holds_what_was_trained_with_and_says_what_it_is(trained, made):
    folder, original = made("vqa"), trained("vqa").moved
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "answers.json", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert (folder / "tokenizer.json").read_bytes() == (original / "tokenizer.json").read_bytes()
    answers = json.loads((folder / "answers.json").read_text())
    assert answers == json.loads((original / "answers.json").read_text())
    text = (folder / "config.json").read_text()
    config, model = json.loads(text), mhmoe_mm.load(folder)
    assert str(original.parent) not in text
    given = plain(trained("vqa").checkpoint)["hyper_parameters"]
    assert config["task"]["class_path"] == given["_class_path"]
    assert config["task"]["init_args"] == {
        "net": given["net"], "answers": "answers.json", "balance_weight": 0.01, "z_weight": 0.0,
    }  # fmt: skip
    assert model.texts is not None
    assert config["tokenizer"] == {
        "sha256": model.texts.tokenizer.sha256,
        "vocab_size": model.texts.tokenizer.vocab_size,
        "max_tokens": model.texts.max_tokens,
    }
    assert config["step"] == 3
    mode = (folder / "README.md").stat().st_mode
    assert {path.stat().st_mode for path in folder.iterdir()} == {mode}


@pytest.mark.parametrize("name", KINDS)
def test_its_parameters_are_counted_and_on_the_card(made, name):
    folder = made(name)
    config, model = json.loads((folder / "config.json").read_text()), mhmoe_mm.load(folder)
    total = sum(parameter.numel() for parameter in model.task.parameters())
    assert config["parameters"] == total > config["active_parameters"]
    net = model.task.net
    if isinstance(net, Decoder):
        assert config["active_parameters"] == decoder_cost(net, 7).active_parameters
    card = (folder / "README.md").read_text()
    assert f"| parameters | {total:,} |" in card
    assert f"| active parameters | {config['active_parameters']:,}, " in card
    assert f'mhmoe_mm.load("{name}")' in card


def test_classes_keep_their_names(made):
    folder = made("classification")
    assert json.loads((folder / "classes.json").read_text()) == CLASSES
    assert not (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("file", ["", "model.safetensors"])
@pytest.mark.parametrize("name", ["vqa", "language"])
def test_a_training_starts_from_it(made, name, file):
    folder = made(name)
    task = mhmoe_mm.load(folder).task
    kept = {name: weight.clone() for name, weight in task.state_dict().items()}
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.zero_()
    report = load_weights(task, folder / file)
    assert equal(task.state_dict(), kept)
    assert report.missing == report.unexpected == []


def test_a_pretrained_network_is_exported_to_start_from(checkpoint, tmp_path):
    content = plain(checkpoint("vqa"))
    net = mhmoe_mm.load(checkpoint("vqa")).task.net
    content["state_dict"] = MaskedPretraining(net, NormalizedPixels(8)).state_dict()  # type: ignore
    content["hyper_parameters"] = {
        "_class_path": f"{MaskedPretraining.__module__}.MaskedPretraining",
        "net": content["hyper_parameters"]["net"],
        "image_target": {"class_path": "mhmoe_mm.models.image_targets.NormalizedPixels"},
    }
    for key in ("answers", "texts"):
        del content[key]
    save_sealed(content, tmp_path / "pretrained.ckpt")
    export(tmp_path / "pretrained.ckpt", tmp_path / "out")
    assert equal(read_weights(tmp_path / "out"), content["state_dict"])
    assert "there to be fine-tuned" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ValueError, match="the task MaskedPretraining, which cannot be asked"):
        mhmoe_mm.load(tmp_path / "out")


def test_weights_that_share_memory_are_written_each(checkpoint, tmp_path):
    content = plain(checkpoint("vqa"))
    weights = content["state_dict"]
    whole = torch.arange(2.0 * 28 * 28).view(2, 28, 28)
    weights |= {"first": whole[0], "second": whole[1].T, "third": whole[0], "empty": whole[2:]}
    save_sealed(content, tmp_path / "a.ckpt")
    export(tmp_path / "a.ckpt", tmp_path / "out")
    assert equal(load_file(tmp_path / "out/model.safetensors"), weights)


def test_a_folder_is_replaced_only_if_it_is_one_and_that_is_asked_for(checkpoint, made, tmp_path):
    folder = made("vqa")
    with pytest.raises(ValueError, match=r"vqa exists already: name a new folder, or replace it"):
        export(checkpoint("nlvr2"), folder)
    export(checkpoint("nlvr2"), folder, overwrite=True)
    assert not (folder / "answers.json").exists()
    assert mhmoe_mm.load(folder).is_true(RED, RED, "a star") in (True, False)
    (folder / "notes.txt").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/config.json").write_text('{"architectures": []}')
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(folder)
    for path, why in {
        folder: "holds notes.txt, which is no part of an exported model and would be lost",
        tmp_path / "other": r"is no exported model, or it lacks its config\.json",
        tmp_path / "foreign": r"config\.json is not that of a model that `python -m tools",
        tmp_path / "file": "file is not a folder of an exported model",
        tmp_path / "link": "link is not a folder of an exported model",
    }.items():
        with pytest.raises(ValueError, match=why):
            export(checkpoint("vqa"), path, overwrite=True)
    assert mhmoe_mm.load(folder).source == str(folder)


@pytest.mark.parametrize("there", [False, True])
def test_a_failed_export_leaves_what_was_there(checkpoint, made, tmp_path, monkeypatch, there):
    folder = made("vqa") if there else tmp_path / "new"
    before = {path.name: path.read_bytes() for path in folder.glob("*")}

    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mhmoe_mm.storage.exported.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export(checkpoint("nlvr2"), folder, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before
    assert [path.name for path in folder.parent.iterdir() if "part" in path.name] == []
    assert folder.exists() == there


def test_checkpoints_whose_weights_are_not_those_of_their_network_are_refused(checkpoint, tmp_path):
    content = plain(checkpoint("vqa"))
    weights, given = content["state_dict"], content["hyper_parameters"]
    name = "net.norm.shared.weight"
    for change, why in {
        "missing": rf"{name} is missing there and should be \(28,\)",
        "wide": rf"{name} is \(31,\) there and should be \(28,\)",
        "more": r"net\.more is \(3,\) there and should be missing",
        "no net": "does not say what its network was made from",
        "setting": "has settings that are no plain values",
    }.items():
        changed = {key: weight for key, weight in weights.items() if key != name}
        if change != "missing":
            changed[name] = torch.zeros(31) if change == "wide" else weights[name]
        if change == "more":
            changed["net.more"] = torch.zeros(3)
        settings = {"no net": {"net": None}, "setting": {"z_weight": torch.float16}}
        entries = {"hyper_parameters": given | settings.get(change, {}), "state_dict": changed}
        save_sealed(content | entries, tmp_path / "a.ckpt")
        with pytest.raises(ValueError, match=why):
            export(tmp_path / "a.ckpt", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_network_of_a_plugin_needs_it_named(checkpoint, tmp_path, monkeypatch):
    content = plain(checkpoint("vqa"))
    layout = content["hyper_parameters"]["net"]["init_args"]["layout"]["init_args"]
    layout["dense"] = {"class_path": "own_nets.Mine", "init_args": {"hidden": 29}}
    save_sealed(content, tmp_path / "a.ckpt")
    (tmp_path / "own_nets.py").write_text("from mhmoe_mm.models.ffn import GeluFFN as Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"needs own_nets\.Mine, which is not of this library"):
        export(tmp_path / "a.ckpt", tmp_path / "out")
    export(tmp_path / "a.ckpt", tmp_path / "out", plugins=["own_nets"])
    card = (tmp_path / "out/README.md").read_text()
    assert """mhmoe_mm.load("out", plugins=['own_nets'])""" in card
    assert mhmoe_mm.load(tmp_path / "out", plugins=["own_nets"]).answer(RED, "a")


def test_an_exported_model_is_not_exported_again(made, tmp_path):
    with pytest.raises(ValueError, match="vqa is an exported model already: copy the folder"):
        export(made("vqa"), tmp_path / "again")
