"""`python -m mhmoe_mm.checkpoint`: golden cases through files, and files that are refused."""

import argparse
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import mhmoe_mm
from mhmoe_mm.checkpoint import load_weights
from mhmoe_mm.checkpoint.__main__ import main
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.caption_reader import caption_visible
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.storage.exported import read_config
from mhmoe_mm.tasks.nlvr2 import NLVR2
from tests.checkpoint.released import drawn
from tests.checkpoint.test_starting import Harmful
from tests.models.test_golden import close, read
from tests.tasks.training import FAST

RED = Image.new("RGB", (23, 31), (200, 30, 10))
GIVEN = read("beit3_tiny.safetensors")
HEADS = read("beit3_tiny_heads.safetensors")


def write(path: Path, weights: dict[str, torch.Tensor], **others: object) -> str:
    """A file as the released trainings leave it."""
    torch.save({"model": weights, "args": argparse.Namespace(lr=0.1), "epoch": 3} | others, path)
    return str(path)


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., Path]:
    """imported(weights) -> the folder of a golden model."""

    def make(weights: dict[str, torch.Tensor], *options: str) -> Path:
        file, out = write(tmp_path / "a.pth", weights), tmp_path / "ours"
        assert main([file, "--num-heads", "4", "--out", str(out), *options]) == 0
        return out

    return make


@torch.no_grad()
def test_golden_answers(imported, tokenizer_path):
    task = mhmoe_mm.load(imported(HEADS["vqa/weight"]), tokenizer=tokenizer_path).task
    given = GIVEN["input"]
    encoded = task.net(given["image"], given["text"], given["pad"])
    close(task.head(task.pooler(encoded.hidden[:, 0])), HEADS["vqa"]["logits"])


@torch.no_grad()
def test_golden_vectors(imported, tokenizer_path):
    folder = imported(HEADS["retrieval/weight"], "--tokenizer", tokenizer_path)
    task, given, wanted = mhmoe_mm.load(folder).task, GIVEN["input"], HEADS["retrieval"]
    image = task.vision_head(task.net(given["image"], None).hidden[:, 0])
    text = task.language_head(task.net(None, given["text"], given["pad"]).hidden[:, 0])
    close(image, wanted["vision_cls"])
    close(text, wanted["language_cls"])
    close(task.logit_scale.exp() * image @ text.T, wanted["logits_per_image"])


@torch.no_grad()
def test_golden_captions(imported, tokenizer_path):
    folder = imported(HEADS["captioning/weight"], "--tokenizer", tokenizer_path)
    model, wanted = mhmoe_mm.load(folder), HEADS["captioning"]
    assert isinstance(model.caption(RED), str)
    text, task = wanted["masked_text"], model.task
    visible = caption_visible(17, text.shape[1])
    encoded = task.net(GIVEN["input"]["image"], text, GIVEN["input"]["pad"], visible=visible)
    close(task.text_head(encoded.hidden[:, 17:]), wanted["logits_all"])


@torch.no_grad()
def test_a_golden_backbone_with_resized_positions_is_what_a_task_starts_from(imported):
    resized = read("beit3_tiny_resized.safetensors")
    folder = imported(resized["weight"], "--image-size", "48")
    layout = ReleasedLayout(dense=lambda dim: GeluFFN(dim, 64))
    task = NLVR2(BEiT3(layout, 48, 8, 50, 32, 2, 4, 14), **FAST)
    report = load_weights(task, folder)
    assert report.resized == report.unexpected == []
    close(task.net(resized["input"]["image48"], None).hidden, resized["output"]["image48"])
    with pytest.raises(ValueError, match="the task MaskedPretraining, which cannot be asked"):
        mhmoe_mm.load(folder)


def test_it_says_what_became_of_every_tensor_and_writes_nothing_without_out(tmp_path, capsys):
    given = drawn("base", "pretraining", torch.float16)
    file = write(tmp_path / "a.pth", given)
    assert main([file, "--num-heads", "2"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{file}: BEiT-3, pretraining, 495 tensors"
    rows = [line.split() for line in said[1:]]
    assert sum(int(row[-1]) if row[-2] == "x" else 1 for row in rows) == 495
    query = "beit3.encoder.layers.#.self_attn.q_proj.A.weight net.blocks.#.attention.query.image"
    assert f"{query}.weight 6x6 float16 x 12".split() in rows
    assert ["mim_head.weight", "image_head.out.weight", "17x6", "float16"] in rows
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_answers_get_their_names_from_either_list(tmp_path, tokenizer_path, capsys):
    file = write(tmp_path / "a.pth", drawn("base", "vqa"))
    names = [f"answer {number}" for number in range(19)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    lines = [json.dumps({"answer": name, "label": i}) for i, name in enumerate(names)]
    (tmp_path / "answer2label.txt").write_text("\n".join(reversed(lines)))
    fixed = [file, "--num-heads", "2", "--tokenizer", tokenizer_path, "--out"]
    for list_name in ("names.json", "answer2label.txt"):
        out = tmp_path / f"{list_name}.model"
        assert main([*fixed, str(out), "--names", str(tmp_path / list_name)]) == 0
        model = mhmoe_mm.load(out)
        assert model.answer(RED, "a star") in names
        assert json.loads((out / "answers.json").read_text()) == names
        assert model.texts is not None
        assert model.texts.max_tokens == 64
        assert read_config(out)["imported_from"] == "a.pth"
        assert "`answer`" in (out / "README.md").read_text()
    capsys.readouterr()
    assert main([*fixed, str(tmp_path / "unnamed")]) == 0
    assert "no names for the answers: they are called by their numbers" in capsys.readouterr().out
    assert mhmoe_mm.load(tmp_path / "unnamed").answer(RED, "a star").isdecimal()


def test_classes_get_their_names(tmp_path):
    file = write(tmp_path / "a.pth", drawn("base", "imagenet"))
    (tmp_path / "names.json").write_text(json.dumps([f"class {i}" for i in range(13)]))
    options = ["--names", str(tmp_path / "names.json"), "--out", str(tmp_path / "out")]
    assert main([file, "--num-heads", "2", *options]) == 0
    assert mhmoe_mm.load(tmp_path / "out").classify(RED).startswith("class ")


def cut(path: Path, share: float) -> str:
    content = path.read_bytes()
    target = path.with_name(f"cut{share}.pth")
    target.write_bytes(content[: int(len(content) * share)])
    return str(target)


def changed(path: Path) -> str:
    """The same archive, the values of one tensor cut short."""
    target = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:-4] if name.endswith("/data/0") else content)
    return str(target)


def flipped(path: Path, weight: torch.Tensor) -> str:
    """The same file, one bit of a tensor another."""
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 5] ^= 4
    target = path.with_name("flipped.pth")
    target.write_bytes(content)
    return str(target)


def test_damaged_and_harmful_files_are_refused_in_a_sentence_and_run_nothing(tmp_path, capsys):
    good = drawn("base", "imagenet")
    file = Path(write(tmp_path / "a.pth", good))
    (tmp_path / "short.json").write_text('["a", "b"]')
    (tmp_path / "gaps.txt").write_text('{"answer": "a", "label": 1}')
    (tmp_path / "words.txt").write_text("a b c")
    heads = ["--num-heads", "2"]
    refused = {
        (str(tmp_path / "no.pth"),): "There are no weights at",
        (cut(file, 0.3), *heads): "is neither a checkpoint nor safetensors, or not a whole one",
        (cut(file, 0.98), *heads): "is neither a checkpoint nor safetensors, or not a whole one",
        (flipped(file, good["head.weight"]), *heads): "is damaged",
        (changed(file), *heads): "holds no weights that can be read safely",
        (write(tmp_path / "b.pth", good, extra=Harmful()), *heads): "can be read safely",
        (write(tmp_path / "c.pth", {"a.weight": torch.zeros(2)}),): "no model that is known here",
        (str(file),): "width of 6, which no released model has",
        (str(file), *heads, "--names", str(tmp_path / "short.json")): "13 classes, and there are 2",
        (str(file), *heads, "--names", str(tmp_path / "gaps.txt")): "not the numbers 0 to 0",
        (str(file), *heads, "--names", str(tmp_path / "words.txt")): "neither a JSON list",
    }
    for command, why in refused.items():
        assert main([*command, "--out", str(tmp_path / "out")]) == 2, command
        said = capsys.readouterr()
        assert why in said.err, command
        assert said.err.startswith("error: ")
        assert len(said.err.splitlines()) == 1
        assert "must not run" not in said.out
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_with_more_tokens_than_the_network_is_refused(tmp_path, tokenizer_path, capsys):
    given = drawn("base", "nlvr2")
    given["beit3.text_embed.weight"] = given["beit3.text_embed.weight"][:7]
    file = write(tmp_path / "a.pth", given)
    command = [file, "--num-heads", "2", "--tokenizer", tokenizer_path]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "more than the 7 that the network knows" in capsys.readouterr().err
