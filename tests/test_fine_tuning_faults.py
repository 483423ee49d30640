"""What a user gets for wrong input of fine-tuning: a sentence before training starts."""

import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mhmoe_mm.command_line.program import run
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.tasks.base import Task
from tests import trained
from tests.datamodules.conftest import write_tar
from tests.datamodules.task_shards import ANSWERS
from tools import check_shards

Fit = Callable[..., tuple[int, str]]


@pytest.fixture
def fit(tmp_path: Path, tokenizer_path: str, monkeypatch: pytest.MonkeyPatch, capsys) -> Fit:
    """fit(task, **options) -> (status, the one line on stderr) of `mhmoe-mm fit` on seven samples
    in the working directory; with `verb` of another command.
    """
    monkeypatch.chdir(tmp_path)

    def command(name: str, verb: str = "fit", **options: str) -> tuple[int, str]:
        kind = trained.KINDS[name]
        samples = {f"{number:09d}": trained.sample(kind, number) for number in range(7)}
        if not Path("shards").exists():
            write_tar(Path("shards/00000.tar"), samples)
        Path("tokenizer.json").write_text(Path(tokenizer_path).read_text())
        Path("answers.json").write_text(json.dumps(ANSWERS))
        Path("classes.json").write_text(json.dumps(trained.CLASSES))
        config = deepcopy(trained.configuration(kind, Path()))
        if name != "captioning":  # routers matter to captions only, and take long to parse
            config["model"]["init_args"]["net"]["init_args"]["layout"]["init_args"]["sparse"] = None
        Path("run.yaml").write_text(yaml.safe_dump(config))
        argv = [verb, "--config", "run.yaml"]
        for key, value in options.items():
            argv += [f"--{key.replace('__', '.')}", value]
        capsys.readouterr()
        status = run(argv, Task)
        lines = capsys.readouterr().err.strip().splitlines()
        assert "Traceback" not in "".join(lines)
        errors = [line for line in lines if line.startswith("mhmoe-mm: error: ")]
        return status, errors[-1] if errors else ""

    return command


def net(width: int) -> BEiT3:
    return BEiT3(
        SharedLayout(), trained.SIZE, trained.PATCH, 31, width, num_layers=2, num_heads=2,
        max_text=13,
    )  # fmt: skip


def write_other_files() -> None:
    """What the wrong settings below name."""
    Path("other.json").write_text(json.dumps([*ANSWERS[:-1], "purple"]))
    Path("longer.json").write_text(json.dumps([*ANSWERS, "purple"]))
    Path("twice.json").write_text(json.dumps([*ANSWERS, ANSWERS[0]]))
    Path("corrupt.ckpt").write_bytes(b"PK\x03\x04 and then nothing")
    Path("corrupt.safetensors").write_bytes(b"\x07\x00\x00")
    Path("folder").mkdir()
    save_file(net(14).state_dict(), "narrow.safetensors")
    save_file({"else": torch.zeros(3)}, "foreign.safetensors")
    torch.save({"epoch": 3}, "empty.ckpt")


EXPERT_CHOICE = "mhmoe_mm.moe.ExpertChoiceRouter"
REFUSED = {
    "answers of another vocabulary than the model": (
        "vqa",
        {"data__sample__answers": "other.json"},
        r"other\.json has other answers than the model: number 4 is 'purple' here and 'green' "
        r"there\. Give both the same list",
    ),
    "more answers than the model": (
        "vqa",
        {"data__sample__answers": "longer.json"},
        r"longer\.json has 6 answers, the model has 5: give both the same list",
    ),
    "an answer twice": ("vqa", {"model__answers": "twice.json"}, r"twice\.json has 6 answers, 5"),
    "no answers": (
        "vqa",
        {"model__answers": "missing.json"},
        r"no list of answers at missing\.json; `python -m tools\.build_shards` writes one",
    ),
    "image size no multiple of the patch": (
        "nlvr2",
        {"model__net__image_size": "20"},
        r"20x20 pixels .* patches of 8x8: choose image_size as a multiple of patch_size",
    ),
    "view no multiple of the patch": (
        "nlvr2",
        {"data__view__size": "20"},
        r"view\.size must be a multiple of view\.patch, got 20 and 8",
    ),
    "view of another size than the network": (
        "nlvr2",
        {"data__view__size": "24"},
        r"view\.size is 24, but the net reads images of image_size=16: give both the same",
    ),
    "weights of another width": (
        "nlvr2",
        {"model__init_from": "narrow.safetensors"},
        r"has the shape .* in narrow\.safetensors, but .* here, and \d+ more differ: describe the "
        r"same network, or start from another file",
    ),
    "weights that are not there": (
        "nlvr2",
        {"model__init_from": "missing.ckpt"},
        r"There are no weights at missing\.ckpt to start from: name another file",
    ),
    "a folder for weights": (
        "nlvr2",
        {"model__init_from": "folder"},
        r"folder is a folder, perhaps a sharded checkpoint: name one file",
    ),
    "a corrupt checkpoint": (
        "nlvr2",
        {"model__init_from": "corrupt.ckpt"},
        r"corrupt\.ckpt is neither a checkpoint nor safetensors, or not a whole one",
    ),
    "corrupt safetensors": (
        "nlvr2",
        {"model__init_from": "corrupt.safetensors"},
        r"corrupt\.safetensors holds no weights that can be read safely \(.*\): name another file",
    ),
    "weights of something else": (
        "nlvr2",
        {"model__init_from": "foreign.safetensors"},
        r"foreign\.safetensors has no weight of this network; it holds net\.else",
    ),
    "a checkpoint without weights": (
        "nlvr2",
        {"model__init_from": "empty.ckpt"},
        r"empty\.ckpt is no checkpoint of ours: it has no 'state_dict'",
    ),
    "weights from an address": (
        "nlvr2",
        {"model__init_from": "https://example.org/a.ckpt"},
        r"Weights are not read from addresses: download https://example\.org/a\.ckpt",
    ),
    "other number of classes": (
        "classification",
        {"model__num_classes": "4"},
        r"classes\.json has 3 classes, the model has 4: give both the same",
    ),
    "no classes": (
        "classification",
        {"data__sample__classes": "missing.json"},
        r"list of classes missing\.json cannot be read",
    ),
    "captions by routers that look ahead": (
        "captioning",
        {"model__net__layout__sparse__router": EXPERT_CHOICE},
        r"Captions cannot be generated: blocks\.1\..*ExpertChoiceRouter, is not causal.*Use a "
        r"router of single tokens",
    ),
    "captions by routers with a capacity": (
        "captioning",
        {"model__net__layout__sparse__router__capacity": "{factor: 1.5}"},
        r"Captions cannot be generated: .*TopKRouter, has a capacity",
    ),
    "captioning vocabulary smaller than the tokenizer": (
        "captioning",
        {"model__net__vocab_size": "17"},
        r"tokenizer tokenizer\.json has 24 tokens, more than the network's vocab_size=17: set",
    ),
    "vocabulary smaller than the tokenizer": (
        "nlvr2",
        {"model__net__vocab_size": "17"},
        r"tokenizer tokenizer\.json has 24 ids, the net's vocab_size is 17: set it to 24 or more",
    ),
    "texts longer than the network reads": (
        "nlvr2",
        {"data__train__max_tokens": "14"},
        r"train\.max_tokens is 14, but the net reads texts of at most max_text=13 tokens",
    ),
    "captions longer than the network reads": (
        "captioning",
        {"model__decoding__max_tokens": "14"},
        r"max_tokens=14 are longer than the network's max_text=13",
    ),
    "texts for a task without": (
        "vqa",
        {"data__train__languages": "[en]"},
        r"train\.languages has no meaning for VqaSamples: leave it out",
    ),
    "warm-up given twice": (
        "vqa",
        {"model__schedule__warmup_steps": "1", "model__schedule__warmup_share": "0.5"},
        r"warmup_steps=1 and as warmup_share=0\.5: leave one of them out",
    ),
}


def test_sound_input_trains(fit: Fit):
    assert fit("vqa") == (0, "")
    assert list(Path("runs/unnamed/version_0/checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_setting_is_one_sentence_and_leaves_nothing(fit: Fit, name: str):
    task, options, sentence = REFUSED[name]
    write_other_files()
    status, error = fit(task, **options)
    assert re.search(sentence, error), error
    assert status == 2
    assert error.endswith(".")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("verb", "files", "sentence"),
    [
        ("fit", ["other.json"], r"checkpoint .*5 answers and here are 5; they first differ at "
         r"number 4\. Use the answers"),
        ("validate", ["longer.json"], r"checkpoint .*5 answers and here are 6; they first differ "
         r"at number 5\. Use the answers"),
    ],
)  # fmt: skip
def test_answers_of_another_vocabulary_than_the_checkpoint_are_refused(
    fit: Fit, verb: str, files: list[str], sentence: str
):
    assert fit("vqa")[0] == 0
    write_other_files()
    before = sorted(Path("runs").rglob("*"))
    (file,) = files
    last = "runs/unnamed/version_0/checkpoints/last.ckpt"
    status, error = fit(
        "vqa", verb, model__answers=file, data__sample__answers=file, ckpt_path=last,
        trainer__max_steps="5",
    )  # fmt: skip
    assert re.search(sentence, error), error
    assert status == 2
    assert sorted(Path("runs").rglob("*")) == before


def test_a_sample_without_its_image_is_named_by_the_check_and_by_training(fit: Fit, capsys):
    kind = trained.KINDS["vqa"]
    samples = {f"{number:09d}": trained.sample(kind, number) for number in range(7)}
    samples["000000003"] = {"json": samples["000000003"]["json"]}
    write_tar(Path("shards/00000.tar"), samples)
    assert check_shards.main(["shards"]) == 1
    assert "sample 000000003: there are 0 images" in capsys.readouterr().err
    status, error = fit("vqa")
    assert status == 1
    assert re.search(r"shards/00000\.tar: 000000003 has no image, only \.json", error), error
