"""The data module as LightningCLI builds it."""

import lightning.pytorch as pl
import pytest
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.cli import LightningCLI

from datamodules.shards import ShardDataModule

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

    def make(config: str, *overrides: str) -> ShardDataModule:
        path = tmp_path / "run.yaml"
        path.write_text(config)
        cli = LightningCLI(
            Net,
            ShardDataModule,
            run=False,
            args=["--config", str(path), "--trainer.logger=false", *overrides],
            parser_kwargs={"parser_mode": "omegaconf+"},
            save_config_callback=None,
        )
        data = cli.datamodule
        assert isinstance(data, ShardDataModule)
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
