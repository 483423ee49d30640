"""The data module as LightningCLI builds it."""

import lightning.pytorch as pl
import pytest
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningCLI

from datamodules.augment import RandAugment
from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import CaptioningSamples
from datamodules.shards import ShardDataModule
from datamodules.vqa import VqaSamples

CONFIG = """
data:
  tokenizer: tokenizer.json
  train:
    pair: {shards: "data/{00000..00003}.tar", batch_size: 5, languages: [en, de]}
    text: {shards: [a.tar, "https://host/b.tar"], batch_size: 7, max_tokens: 33}
  val:
    pair: {shards: val, batch_size: 3}
  view: {size: 64, patch: 8, scale: [0.2, 0.9]}
  masking: {image_share: 0.3, whole_word: true}
  limits: {max_errors: 2}
  loading: {workers: 2}
  streaming: {samples_per_epoch: 100}
  seed: ${data.train.pair.batch_size}
"""


class Net(pl.LightningModule):
    pass


@pytest.fixture
def build(tmp_path):
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)

    def make(config: str, *overrides: str, kind=ShardDataModule):
        path = tmp_path / "run.yaml"
        path.write_text(config)
        cli = LightningCLI(
            Net,
            kind,
            run=False,
            args=["--config", str(path), "--trainer.logger=false", *overrides],
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_callback=None,
        )
        data = cli.datamodule
        assert isinstance(data, kind)
        return data

    yield make
    set_parsing_settings(omegaconf_absolute_to_relative_paths=False)


def test_every_setting_reaches_the_module(build):
    data = build(CONFIG)
    train, val = data.sources["train"], data.sources["val"]
    assert list(train.present()) == ["pair", "text"]
    assert train.pair.languages == ["en", "de"]
    assert train.text.shards == ["a.tar", "https://host/b.tar"]
    assert (train.text.max_tokens, val.pair.batch_size) == (33, 3)
    assert (data.view.grid, data.view.scale, data.view.flip) == (8, (0.2, 0.9), 0.0)
    assert (data.masking.image_share, data.masking.mask_share) == (0.3, 0.8)
    assert (data.limits.max_errors, data.limits.verify) == (2, False)
    assert (data.loading.workers, data.seed) == (2, 5)
    assert data.streaming.samples_per_epoch == 100


def test_the_smallest_config_has_defaults(build):
    small = {"data": {"tokenizer": "t", "train": {"image": {"shards": "x", "batch_size": 2}}}}
    data = build(yaml.safe_dump(small), "--data.train.image.batch_size=11")
    assert data.sources["train"].image.batch_size == 11
    assert data.sources["val"] is None
    assert data.streaming is None
    assert data.view.size == 224


FINE_TUNING = """
data:
  train: {shards: [data/train, data/val], batch_size: 5, max_tokens: 24}
  test: {shards: data/test, batch_size: 7}
  tokenizer: tokenizer.json
  sample:
    class_path: datamodules.image_text.CaptioningSamples
    init_args: {share: 0.6}
  view: {size: 64, patch: 8, augment: {level: 9}}
"""


def test_a_task_is_named_by_its_class_path(build):
    data = build(FINE_TUNING, kind=FineTuningDataModule)
    assert isinstance(data.sample, CaptioningSamples)
    assert (data.sample.share, data.sample.every_caption) == (0.6, False)
    assert (data.sources["train"].batch_size, data.sources["test"].batch_size) == (5, 7)
    assert data.sources["val"] is None
    assert data.view.augment == RandAugment(ops=2, level=9.0)


def test_a_task_can_be_exchanged_on_the_command_line(build):
    options = ["--data.sample=datamodules.vqa.VqaSamples", "--data.sample.answers=a.json"]
    data = build(FINE_TUNING, *options, kind=FineTuningDataModule)
    assert isinstance(data.sample, VqaSamples)
    assert data.sample.answers == "a.json"
