"""What a user gets for wrong input, from the command line to the disk: a sentence, nothing else."""

import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

from mhmoe_mm.command_line.program import run
from mhmoe_mm.tasks.base import Task
from tools import train_tokenizer
from tools.build_shards.cli import main as build_shards

CONF = Path(__file__).parents[1] / "conf"
SMALL = {
    "trainer.max_steps": "2",
    "trainer.num_sanity_val_steps": "0",
    "trainer.limit_val_batches": "0",
    "model.schedule.warmup_steps": "0",
    "model.image_target": "mhmoe_mm.models.image_targets.NormalizedPixels",
    "model.image_target.patch_size": "8",
    "model.net.dim": "32",
    "model.net.num_layers": "2",
    "data.train.pair.batch_size": "8",
    "data.train.image.batch_size": "8",
    "data.train.text.batch_size": "8",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "shapes"
    assert (
        build_shards(["shapes", "--out", str(folder), "--train", "24", "--val", "8", "--test", "8"])
        == 0
    )
    tokenizer = str(folder / "tokenizer.json")
    assert train_tokenizer.main([str(folder), "--vocab-size", "300", "--out", tokenizer]) == 0
    return folder


@pytest.fixture
def fit(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run `mhmoe-mm fit` on a copy of the corpus: (status, the one line on stderr)."""
    shutil.copytree(corpus, tmp_path / "data/shapes")
    monkeypatch.chdir(tmp_path)

    def command(**options: str) -> tuple[int, str]:
        argv = ["fit", "--config", str(CONF / "trainer/cpu.yaml")]
        argv += ["--config", str(CONF / "runs/shapes.yaml")]
        for key, value in (SMALL | {k.replace("__", "."): v for k, v in options.items()}).items():
            argv += [f"--{key}", value]
        capsys.readouterr()
        status = run(argv, Task)
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("mhmoe-mm: error: ")]
        assert "Traceback" not in "".join(lines)
        return status, errors[-1] if errors else ""

    return command


def members(shard: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(shard) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar.getmembers()]


def rewrite(shard: Path, change) -> None:
    """The same shard with `change(name, data)` for every member (None leaves it out), indexed."""
    content = members(shard)
    with tarfile.open(shard, "w") as tar:
        for member, data in content:
            changed = change(member.name, data)
            if changed is not None:
                member.size = len(changed)
                tar.addfile(member, io.BytesIO(changed))
    shard.with_suffix(".index.json").unlink()
    assert build_shards(["index", str(shard)]) == 0


def test_sound_input_trains(fit):
    assert fit() == (0, "")
    assert list(Path("runs/shapes/version_0/checkpoints").glob("*.ckpt"))


REFUSED = {
    "wrong shard path": (
        {"data__train__pair__shards": "data/shapes/trian"},
        r"No shards match 'data/shapes/trian'.*train",
    ),
    "unknown key": ({"data__train__pair__bach_size": "4"}, r"bach_size.*batch_size"),
    "d not divisible by h": (
        {"model__net__layout__sparse__num_heads": "3"},
        r"dim=32 .*num_heads=3",
    ),
    "top-k larger than E": (
        {"model__net__layout__sparse__router__top_k": "41"},
        r"top_k=41 .*num_experts=40",
    ),
    "vocabulary too small": ({"model__net__vocab_size": "7"}, r"vocab_size is 7"),
    "image size": ({"model__net__image_size": "36"}, r"36"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_setting_is_one_sentence_and_leaves_nothing(fit, name):
    options, sentence = REFUSED[name]
    status, error = fit(**options)
    assert status == 2
    assert re.search(sentence, error), error
    assert not Path("runs").exists()


def test_a_corrupt_image_is_named(fit):
    shard = Path("data/shapes/train/00000.tar")
    rewrite(shard, lambda name, data: data[: len(data) // 2] if name == "000000003.png" else data)
    status, error = fit()
    assert status == 1
    assert "00000.tar" in error
    assert "000000003" in error


def test_a_missing_caption_is_named(fit):
    shard = Path("data/shapes/train/00000.tar")

    def without(name: str, data: bytes) -> bytes:
        if name != "000000005.json":
            return data
        return json.dumps(json.loads(data) | {"captions": {"de": ["ein Kreis"]}}).encode()

    rewrite(shard, without)
    status, error = fit()
    assert status == 1
    assert "00000.tar" in error
    assert "000000005" in error
    assert "de" in error


def test_a_truncated_shard_is_named_before_training(fit):
    shard = Path("data/shapes/train/00000.tar")
    shard.write_bytes(shard.read_bytes()[:-20_000])
    status, error = fit()
    assert status == 2
    assert "00000.tar" in error
    assert not Path("runs").exists()
    assert build_shards(["index", str(shard)]) == 2  # nor does an index of it come about
