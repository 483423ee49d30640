"""A card tells of data, figures and experts as far as the folder of the run does."""

import json
from pathlib import Path

import pytest

from mhmoe_mm.run_record import sections
from mhmoe_mm.storage.whole import file_sha256

CONFIG = """
data:
  class_path: datamodules.vqa.Data
  init_args:
    train: {shards: /home/me/data/birds/train, batch_size: 17}
    val: {shards: [/home/me/data/birds/val, more/val], batch_size: 5}
    test: null
"""


def use(active: float) -> dict:
    return {"activation": active, "max_over_mean": 1.53, "random": {"activation": 1.0}}


def event(stage: str, step: int, active: float) -> str:
    record = {"stage": stage, "step": step, "layer": "blocks.1.ffn.image", "experts": 8}
    return json.dumps(record | {"kinds": {"image": use(active)}}) + "\n"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run = tmp_path / "runs/birds/version_3"
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints/last.ckpt"
    path.write_bytes(b"weights")
    (run / "config.yaml").write_text(CONFIG)
    events = event("val", 50, 0.25) + event("val", 100, 0.5) + event("train", 100, 0.1)
    (run / "experts.jsonl").write_text(events + event("val", 150, 0.75) + '{"cut')
    evaluated = run.parent / "version_4"
    evaluated.mkdir()
    of_it = {"metrics": {"test/accuracy": 0.98765}, "checkpoint": {"sha256": file_sha256(path)}}
    other = {"metrics": {"val/accuracy": 0.5}, "checkpoint": {"sha256": "of another"}}
    (evaluated / "test.json").write_text(json.dumps(of_it))
    (evaluated / "validate.json").write_text(json.dumps(other))
    return path


def test_what_the_run_tells_is_on_the_card(checkpoint):
    assert sections(checkpoint, 120) == {
        "Trained on": {
            "data": "`datamodules.vqa.Data`",
            "train": "`birds/train`, 17 in a batch",
            "val": "`birds/val`, `more/val`, 5 in a batch",
        },
        "Figures": {"test/accuracy": "0.9877"},
        "Experts, validation at step 100": {
            "`blocks.1.ffn.image`, image": "50% of 8 experts active (100% by chance), the fullest "
            "has 1.5 even shares"
        },
    }


def test_a_checkpoint_alone_tells_nothing(checkpoint, tmp_path):
    assert sections(checkpoint.rename(tmp_path / "a.ckpt"), 120) == {}
    (tmp_path / "checkpoints").mkdir()
    assert sections(tmp_path / "checkpoints/a.ckpt", 120) == {}
