"""The recipes of `conf/runs/beit3` are the published ones, and run.

The commands are those that a user copies from the head of each file.
"""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from datamodules.augment import RandAugment
from datamodules.augment_images import Erasing, ImageRandAugment
from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.program import build, run
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.moe import MHMoE
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import CaptionLoss
from tests import trained
from tests.datamodules.conftest import write_tar
from tests.models.test_conf_nets import on_meta

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "conf/runs/beit3").glob("*.yaml"))
NUM_ANSWERS = 3129


class Row(NamedTuple):
    """Of the table of fine-tuning commands in the released code."""

    net: str
    size: int
    batch: int
    lr: float
    layer_decay: float
    epochs: int
    warm: int
    drop_path: float
    weight_decay: float


TABLE = {
    "vqav2_base": Row("base", 480, 128, 3e-5, 1.0, 10, 1, 0.1, 0.01),
    "vqav2_large": Row("large", 480, 128, 2e-5, 1.0, 10, 1, 0.15, 0.01),
    "nlvr2_base": Row("base", 224, 256, 7e-4, 0.65, 20, 5, 0.2, 0.2),
    "nlvr2_large": Row("large", 224, 256, 3e-4, 0.85, 20, 5, 0.2, 0.2),
    "coco_retrieval_base": Row("base", 384, 3072, 2e-4, 0.65, 15, 3, 0.2, 0.05),
    "coco_retrieval_large": Row("large", 384, 3072, 5e-5, 0.85, 15, 3, 0.2, 0.05),
    "flickr30k_retrieval_base": Row("base", 384, 3072, 1e-4, 0.65, 20, 5, 0.2, 0.05),
    "flickr30k_retrieval_large": Row("large", 384, 3072, 5e-5, 0.85, 20, 5, 0.2, 0.05),
    "coco_captioning_base": Row("base", 480, 256, 4e-5, 1.0, 10, 1, 0.1, 0.05),
    "coco_captioning_large": Row("large", 480, 256, 8e-6, 1.0, 10, 1, 0.1, 0.05),
    "nocaps_base": Row("base", 480, 256, 1e-5, 1.0, 10, 1, 0.1, 0.05),
    "nocaps_large": Row("large", 480, 256, 8e-6, 1.0, 10, 1, 0.1, 0.05),
    "imagenet_base": Row("base", 224, 1024, 7e-4, 0.65, 50, 5, 0.15, 0.05),
    "imagenet_large": Row("large", 224, 1024, 2e-4, 0.8, 50, 5, 0.25, 0.05),
}
MH_MOE = {  # as the base rows, which its paper leaves open; the drop path is the net's
    f"{task}_mh_moe": TABLE[f"{task}_base"]._replace(net="base_mh_moe", drop_path=0.1)
    for task in ("vqav2", "nlvr2", "coco_captioning")
}
ROWS = TABLE | MH_MOE


def command(path: Path) -> list[str]:
    """The words of the command behind `# Run`, without the program's name."""
    head = "".join(re.findall(r"^#(.*\n)", path.read_text(), re.MULTILINE)).replace("\\\n", " ")
    line = re.search(r"^ Run +mhmoe-mm (.*)$", head, re.MULTILINE)
    assert line is not None, f"no command in {path}"
    return shlex.split(line[1])


def lay_out(folder: Path, tokenizer: str) -> None:
    """A folder in which the commands find what they read while they are built."""
    (folder / "conf").symlink_to(ROOT / "conf")
    for place in ("data/vqav2", "data/pretraining"):
        (folder / place).mkdir(parents=True)
    (folder / "data/vqav2/answers.json").write_text(
        json.dumps([f"answer {number}" for number in range(NUM_ANSWERS)])
    )
    for place in ("data", "data/pretraining"):
        shutil.copy(tokenizer, folder / place / "tokenizer.json")


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_path: str
) -> Callable[[str], Command]:
    """built(name) -> a recipe without memory for its weights, built once."""
    folder = tmp_path_factory.mktemp("recipes")
    lay_out(folder, tokenizer_path)

    def make(name: str) -> Command:
        argv = command(ROOT / f"conf/runs/beit3/{name}.yaml")
        with pytest.MonkeyPatch.context() as patch, torch.device("meta"):
            patch.chdir(folder)
            return build([*argv, "--trainer.accelerator", "cpu"], Task)

    return cache(make)


def test_there_is_a_recipe_for_every_row_and_no_other():
    assert [path.stem for path in RECIPES] == sorted(ROWS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_that_its_numbers_were_published_and_not_measured(path: Path):
    assert re.search(r"^# Cost    not measured\n# Expect  published, not measured here: ",
                     path.read_text(), re.MULTILINE)  # fmt: skip
    assert str(path.relative_to(ROOT)) in command(path)


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_has_the_numbers_of_its_row(built, name: str):
    row, one = ROWS[name], built(name)
    net, trainer = one.model.net, one.trainer
    assert isinstance(net, BEiT3)
    assert net.image_embedding.image_size == one.datamodule.view.size == row.size
    assert one.datamodule.sources["train"].batch_size * trainer.accumulate_grad_batches == row.batch
    assert (trainer.max_epochs, trainer.max_steps, trainer.num_devices) == (row.epochs, -1, 1)
    assert trainer.gradient_clip_val is None
    described = one.config.fit.model.init_args.net.init_args
    assert described.drop_path == row.drop_path


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_optimises_as_its_row_says(built, name: str):
    row, task = ROWS[name], built(name).model
    optimizer = task.make_optimizer(task.named_parameters())
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    vqa = name.startswith("vqav2")
    assert optimizer.defaults["eps"] == 1e-8
    assert tuple(optimizer.defaults["betas"]) == (0.9, 0.98 if vqa else 0.999)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0, row.weight_decay}

    heads = [p for n, p in task.named_parameters() if not n.startswith("net.") and "head" in n]
    (fastest,) = {rate[id(p)] for p in heads}
    assert fastest == pytest.approx(row.lr * (20 if vqa else 1))
    for depth, block in enumerate(reversed(task.net.blocks), start=1):
        (found,) = {rate[id(p)] for p in block.parameters()}
        assert found == pytest.approx(row.lr * row.layer_decay**depth)


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_warms_up_and_comes_down_as_its_row_says(built, name: str):
    row, task, steps = ROWS[name], built(name).model, 11
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=row.lr)
    schedule = task.make_schedule(optimizer, row.epochs * steps)
    (share,) = schedule.lr_lambdas
    peak = [step for step in range(row.epochs * steps) if share(step) == 1]
    assert peak == [row.warm * steps - 1, row.warm * steps]
    assert share(0) == 0
    assert row.lr * share(row.epochs * steps) == pytest.approx(1e-6, rel=1e-3)


@pytest.mark.parametrize("name", ROWS)
def test_the_network_of_a_recipe_is_that_of_conf_nets(built, name: str):
    def shapes(net: torch.nn.Module) -> dict[str, torch.Size]:
        """What depends neither on the size of images nor on the task."""
        return {
            name: weight.shape
            for name, weight in net.state_dict().items()
            if name != "image_embedding.position" and not name.startswith("norm.")
        }

    assert shapes(built(name).model.net) == shapes(on_meta(ROWS[name].net))
    has_norm = built(name).model.net.norm is not None
    assert has_norm == (not name.startswith(("vqav2", "imagenet")))
    sparse = any(isinstance(part, MHMoE) for part in built(name).model.net.modules())
    assert sparse == (name in MH_MOE)


@pytest.mark.parametrize("name", ROWS)
def test_images_are_flipped_only_where_there_is_no_text(built, name: str):
    data = built(name).datamodule
    assert data.sample.reads_text == (not name.startswith("imagenet"))
    assert data.view.flip == (0.0 if data.sample.reads_text else 0.5)


@pytest.mark.parametrize("name", ROWS)
def test_images_are_augmented_as_in_the_released_code(built, name: str):
    view = built(name).datamodule.view
    changed = name.startswith(("vqav2", "coco_captioning", "nocaps"))
    if name.startswith("imagenet"):
        assert (view.augment, view.erase) == (ImageRandAugment(0.5, 2, 9.0), Erasing(0.25))
        assert (tuple(view.scale), view.center_crop) == ((0.08, 1.0), True)
    else:
        assert view.augment == (RandAugment(2, 7.0) if changed else None)
        assert (view.erase, tuple(view.scale), view.center_crop) == (None, (0.5, 1.0), False)


@pytest.mark.parametrize("name", [name for name in ROWS if "cap" in name])
def test_captions_are_learned_and_written_as_in_the_released_code(built, name: str):
    task, data = built(name).model, built(name).datamodule
    assert task.loss == CaptionLoss(label_smoothing=0.1, drop_worst=0.2, drop_after=12000)
    assert (task.decoding.num_beams, task.decoding.length_penalty) == (3, 0.6)
    assert (data.sample.share, data.sample.every_caption) == (0.7, True)
    splits = [source for source in data.sources.values() if source is not None]
    assert {source.max_tokens for source in splits} == {task.decoding.max_tokens} == {32}
    assert data.sources["train"].shards == "data/coco/train"
    evaluated = "data/nocaps/val" if name.startswith("nocaps") else "data/coco/val"
    assert data.sources["val"].shards == evaluated


@pytest.mark.parametrize("name", ["imagenet_base", "imagenet_large"])
def test_images_of_classes_are_mixed_as_in_the_released_code(built, name: str):
    task = built(name).model
    assert task.label_smoothing == 0.1
    assert {type(mixture).__name__ for mixture in task.mixtures} == {"MixUp", "CutMix"}
    given = built(name).config.fit.model.init_args
    assert (given.mixup, given.cutmix, given.num_classes) == (0.8, 1.0, 1000)


@pytest.mark.parametrize("name", [name for name in ROWS if "retrieval" in name])
def test_retrieval_sees_every_caption_and_starts_from_contrastive_weights(built, name: str):
    assert built(name).datamodule.sample.every_caption
    assert built(name).model.init_from == f"checkpoints/beit3_{ROWS[name].net}_itc_patch16_224.pth"


KIND = {
    "vqav2": "vqa", "nlvr2": "nlvr2", "coco_retrieval": "retrieval",
    "flickr30k_retrieval": "retrieval", "coco_captioning": "captioning",
    "imagenet": "classification",
}  # fmt: skip
FOLDER = {
    "coco_retrieval": "coco", "flickr30k_retrieval": "flickr30k", "coco_captioning": "coco"
}  # fmt: skip
VOCAB, DIM, PATCH, SIZE = 31, 28, 8, 24
SMALL = {
    "trainer.accelerator": "cpu", "trainer.precision": "32-true", "trainer.max_epochs": "2",
    "trainer.accumulate_grad_batches": "2", "trainer.enable_progress_bar": "false",
    "model.net.dim": f"{DIM}", "model.net.num_layers": "2", "model.net.num_heads": "2",
    "model.net.vocab_size": f"{VOCAB}", "model.net.max_text": "64",
    "model.net.patch_size": f"{PATCH}", "data.view.patch": f"{PATCH}",
    "model.net.image_size": f"{SIZE}", "model.init_from": "checkpoints/small.safetensors",
    "data.train.batch_size": "2", "data.val.batch_size": "3", "data.loading.workers": "0",
}  # fmt: skip


@pytest.mark.parametrize("task", KIND)
def test_a_recipe_trains_from_weights_of_smaller_images_and_keeps_the_best(
    task: str, tmp_path: Path, tokenizer_path: str, monkeypatch: pytest.MonkeyPatch, said
):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path, tokenizer_path)
    kind, place = trained.KINDS[KIND[task]], Path("data") / FOLDER.get(task, task)
    for split in ("train", "val", "test"):
        samples = {f"{number:09d}": trained.sample(kind, number) for number in range(7)}
        write_tar(place / split / "00000.tar", samples)
    (place / "answers.json").write_text(json.dumps(trained.task_shards.ANSWERS))
    (place / "classes.json").write_text(json.dumps(trained.CLASSES))
    Path("checkpoints").mkdir()
    start = BEiT3(ReleasedLayout(), 2 * PATCH, PATCH, VOCAB, DIM, 2, 2, max_text=64)
    save_file(start.state_dict(), "checkpoints/small.safetensors")

    options = SMALL | ({"model.num_classes": "3"} if task == "imagenet" else {})
    argv = command(ROOT / f"conf/runs/beit3/{task}_base.yaml")
    assert (
        run([*argv, *(w for key, value in options.items() for w in (f"--{key}", value))], Task) == 0
    )

    assert "resized: 1 (net.image_embedding.position from 7 to 12 rows)" in said.text
    (folder,) = Path("runs", f"{task}_base").iterdir()
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert len(kept) == 2
    assert kept[0] == "last.ckpt"
