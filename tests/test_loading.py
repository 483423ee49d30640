"""A checkpoint is enough: it loads anywhere, runs nothing, and says in a sentence what is wrong."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse._common import parsing_settings
from PIL import Image

import mhmoe_mm
from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from tests.datamodules import task_shards
from tests.trained import CLASSES, LONGEST, NET, SIZE, Trained, configuration

Make = Callable[[str], Trained]
TEXTUAL = ["vqa", "retrieval", "captioning", "nlvr2"]
RED = Image.new("RGB", (23, 31), (200, 30, 10))


@pytest.fixture
def changed(trained: Make, tmp_path: Path):
    """changed(name, **entries) -> a copy of a checkpoint with other entries; None takes one out."""

    def make(name: str, **entries) -> Path:
        content = torch.load(trained(name).checkpoint, weights_only=True) | entries
        path = tmp_path / f"{name}.ckpt"
        torch.save({key: value for key, value in content.items() if value is not None}, path)
        return path

    return make


def hyper_parameters(made: Trained) -> dict:
    return torch.load(made.checkpoint, weights_only=True)["hyper_parameters"]


@pytest.mark.parametrize("name", [*TEXTUAL, "classification"])
def test_a_checkpoint_alone_is_enough_elsewhere(trained, name, tmp_path, monkeypatch):
    made = trained(name)
    given = hyper_parameters(made)
    named = [given[option] for option in made.kind.files]
    assert not any(Path(path).exists() for path in named)
    shutil.copy(made.checkpoint, tmp_path / "a.ckpt")
    monkeypatch.chdir(tmp_path)
    model = mhmoe_mm.load("a.ckpt")
    assert not model.task.training
    kept = made.task().state_dict()
    assert all(torch.equal(weight, kept[key]) for key, weight in model.task.state_dict().items())
    assert (model.texts is None) == (name == "classification")
    if model.texts:
        assert model.texts.max_tokens == LONGEST
        original = (made.moved / "tokenizer.json").read_text()
        assert model.texts.tokenizer.content == original
    if name == "classification":
        assert model.classify(RED) in CLASSES


def test_a_folder_of_a_run_means_its_last_checkpoint(trained):
    made = trained("vqa")
    model = mhmoe_mm.load(made.run)
    assert model.source == str(made.checkpoint)
    assert model.answer(RED, "is the a star") in task_shards.ANSWERS
    with pytest.raises(
        ValueError, match=f"the folder of a run, such as {re.escape(str(made.run))}"
    ):
        mhmoe_mm.load(made.run.parent)


def test_a_program_sees_nothing_of_it_but_the_model(trained):
    before, settings = torch.get_rng_state(), dict(parsing_settings)
    mhmoe_mm.load(trained("vqa").checkpoint)
    assert torch.equal(torch.get_rng_state(), before)
    assert parsing_settings == settings


def test_importing_the_package_imports_nothing_else():
    program = "import sys, mhmoe_mm; assert 'torch' not in sys.modules; print(mhmoe_mm.__all__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "['from_pretrained', 'load', 'push_to_hub']", done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = mhmoe_mm.lod


@pytest.mark.parametrize("name", TEXTUAL)
def test_an_old_checkpoint_takes_the_tokenizer_that_it_was_trained_with(trained, changed, name):
    made, old = trained(name), changed(name, texts=None)
    why = "does not exist" if name == "captioning" else "keeps no tokenizer, as checkpoints once"
    with pytest.raises(ValueError, match=why):
        mhmoe_mm.load(old)
    model = mhmoe_mm.load(old, tokenizer=made.moved / "tokenizer.json")
    assert model.texts is not None
    assert model.texts.max_tokens == 13  # the network's max_text
    assert model.texts.tokenizer.sha256 == mhmoe_mm.load(made.checkpoint).texts.tokenizer.sha256


def test_an_old_classification_calls_classes_by_their_numbers(changed):
    assert mhmoe_mm.load(changed("classification", classes=None)).classify(RED) in {"0", "1", "2"}


def test_another_tokenizer_is_refused(trained, changed, tmp_path):
    original = (trained("vqa").moved / "tokenizer.json").read_text()
    (tmp_path / "other.json").write_text(original.replace("square", "cube"))
    for path in (trained("vqa").checkpoint, changed("vqa", texts=None)):
        with pytest.raises(ValueError, match=r"other\.json is not the tokenizer that .* with"):
            mhmoe_mm.load(path, tokenizer=tmp_path / "other.json")


def test_a_damaged_tokenizer_is_refused(trained, changed):
    texts = torch.load(trained("vqa").checkpoint, weights_only=True)["texts"]
    for damaged in ({**texts, "tokenizer": texts["tokenizer"][:-9]}, {"tokenizer": ""}, 7):
        with pytest.raises(ValueError, match=r"vqa\.ckpt keeps a tokenizer that is damaged"):
            mhmoe_mm.load(changed("vqa", texts=damaged))


class Harmful:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_what_is_no_checkpoint_is_refused_in_a_sentence(tmp_path, capsys, changed):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sharded").mkdir()
    (tmp_path / "sharded/meta.pt").touch()
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"hyper_parameters": Harmful()}, tmp_path / "harmful.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    torch.save({}, tmp_path / "nothing.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": []}, tmp_path / "list_inside.ckpt")
    for name, why in {
        "none.ckpt": "No such checkpoint",
        "empty": "is a folder without checkpoints/last.ckpt",
        "sharded": "is not a checkpoint, or not a whole one: it has no manifest.json",
        "nothing.ckpt": "nothing.ckpt does not hold a model: load a checkpoint of `mhmoe-mm fit`",
        "list_inside.ckpt": "list_inside.ckpt does not hold a model",
        "text.ckpt": "is not a checkpoint, or not a whole one",
        "harmful.ckpt": "is not a checkpoint that can be read safely",
        "list.ckpt": "holds a list, not a checkpoint",
        "foreign.ckpt": "load a checkpoint of `mhmoe-mm fit`",
    }.items():
        with pytest.raises(ValueError, match=why):
            mhmoe_mm.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"download https://example.org/a\.ckpt and name the file"):
        mhmoe_mm.load("https://example.org/a.ckpt")
    assert "must not run" not in capsys.readouterr().out


def test_a_pretrained_network_is_refused_with_what_could_be_asked(changed):
    pretrained = f"{MaskedPretraining.__module__}.MaskedPretraining"
    path = changed("vqa", hyper_parameters={"_class_path": pretrained})
    with pytest.raises(ValueError, match=r"the task MaskedPretraining.*Captioning, Image.*, VQA"):
        mhmoe_mm.load(path)


def test_classes_from_elsewhere_are_not_imported_unless_named(trained, changed, tmp_path):
    given = hyper_parameters(trained("vqa"))
    (tmp_path / "my_nets.py").write_text("from mhmoe_mm.models.ffn import GeluFFN as Mine\n")
    layout = given["net"]["init_args"]["layout"]["init_args"]
    layout["dense"] = {"class_path": "my_nets.Mine", "init_args": {"hidden": 29}}
    path = changed("vqa", hyper_parameters=given)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        why = (
            r"vqa\.ckpt needs my_nets\.Mine, which is not of this library.*plugins=\[\"my_nets\"\]"
        )
        with pytest.raises(ValueError, match=why):
            mhmoe_mm.load(path)
        assert "my_nets" not in sys.modules
        for plugins in ("my_nets", ["my_nets"]):
            assert mhmoe_mm.load(path, plugins=plugins).answer(RED, "a")
        sys.modules.pop("my_nets")


def test_weights_that_do_not_fit_are_refused(trained, changed):
    weights = torch.load(trained("vqa").checkpoint, weights_only=True)["state_dict"]
    weights.pop("net.norm.shared.weight")
    with pytest.raises(ValueError, match=r"cannot be built here: .*net\.norm\.shared\.weight"):
        mhmoe_mm.load(changed("vqa", state_dict=weights))


def test_a_long_reason_is_cut(changed):
    with pytest.raises(
        ValueError, match=r"cannot be built here: .*Missing key.* \.\.\.$"
    ) as raised:
        mhmoe_mm.load(changed("vqa", state_dict={}))
    assert len(str(raised.value)) < 1000


def test_an_old_checkpoint_without_the_length_of_its_texts_is_refused(trained, changed):
    given = hyper_parameters(trained("vqa")) | {"net": None}
    path = changed("vqa", hyper_parameters=given, texts=None)
    with pytest.raises(ValueError, match=r"vqa\.ckpt does not say how long the texts of its net"):
        mhmoe_mm.load(path, tokenizer=trained("vqa").moved / "tokenizer.json")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(trained, device):
    with pytest.raises(ValueError, match=f"The device {device} cannot be used here"):
        mhmoe_mm.load(trained("vqa").checkpoint, device=device)


def test_the_program_restores_such_a_checkpoint_and_refuses_other_answers(
    trained, tmp_path, capsys
):
    made = trained("vqa")
    config = configuration(made.kind, made.moved)
    config["data"]["init_args"]["val"]["shards"] = str(made.moved.parent / "shards")
    config["data"]["init_args"]["train"] = None
    config["trainer"]["default_root_dir"] = str(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    arguments = ["validate", "--config", str(path), "--ckpt_path", str(made.checkpoint)]
    assert run(arguments, Task) == 0
    other = tmp_path / "answers.json"
    other.write_text(json.dumps(task_shards.ANSWERS[::-1]))
    options = [f"--{key}.answers={other}" for key in ("model", "data.sample")]
    assert run([*arguments, *options], Task) != 0
    assert "was trained with 5 answers and here are 5; they first" in capsys.readouterr().err


def test_the_sizes_of_these_tests_differ():
    assert len({SIZE, LONGEST, NET["init_args"]["max_text"]}) == 3
