"""The data module under Lightning: what a run that was interrupted sees afterwards."""

import logging
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from datamodules.decoders import Limits
from datamodules.loading import Loading
from datamodules.shards import ShardDataModule
from datamodules.sources import Source, Sources
from datamodules.transforms import View

COUNTS = [5, 7, 3, 8]  # 23 samples


class Recorder(pl.LightningModule):
    """Remembers which samples it saw in training, epoch by epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, tuple[str, ...], tuple[str, ...]]] = []
        self.validated = 0

    def training_step(self, batch, batch_idx):
        row = (self.current_epoch, batch_idx, tuple(batch.pair.key), tuple(batch.text.key))
        self.seen.append(row)
        return self.weight.sum() + batch.pair.masked.sum()

    def validation_step(self, batch, batch_idx):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class StopAt(Callback):
    """Ends a run the hard way, before a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KeyError("stopped")


@pytest.fixture
def make_module(make_shards, tokenizer_path):
    folder = str(make_shards(COUNTS))

    def make(batch_size=3, **options):
        sources = Sources(pair=Source(folder, batch_size), text=Source(folder, batch_size))
        options = {"loading": Loading(threads=0, window=2)} | options
        val = Sources(pair=Source(folder, 6))
        view = View(size=16, patch=8)
        return ShardDataModule(sources, tokenizer_path, val=val, view=view, seed=3, **options)

    return make


def fit(data, folder, epochs=3, resume=None, callbacks=(), every=1, **options):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    saver = ModelCheckpoint(
        dirpath=folder, filename="{step}", save_top_k=-1, every_n_train_steps=every
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[saver, *callbacks],
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    module = Recorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dataloader is not resumable.*")
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 6, 7, 8, 13, 14])
def test_a_resumed_run_sees_exactly_what_is_left(make_module, tmp_path, step, workers):
    whole = fit(make_module(), tmp_path / "a").seen
    assert [row[:2] for row in whole] == [(e, b) for e in range(3) for b in range(7)]
    later = make_module(loading=Loading(workers, 0, window=2))
    resumed = fit(later, tmp_path / "b", resume=tmp_path / f"a/step={step}.ckpt")
    assert resumed.seen == whole[step:]


def test_a_run_killed_within_a_step_repeats_that_step(make_module, tmp_path):
    whole = fit(make_module(), tmp_path / "a").seen
    with pytest.raises(KeyError, match="stopped"):
        fit(make_module(), tmp_path / "b", callbacks=[StopAt(10)], every=2)
    resumed = fit(make_module(), tmp_path / "c", resume=tmp_path / "b/step=10.ckpt")
    assert resumed.seen == whole[10:]


def test_a_checkpoint_at_the_end_of_an_epoch_starts_the_next(make_module, tmp_path):
    whole = fit(make_module(), tmp_path / "a").seen
    fit(make_module(), tmp_path / "b", epochs=2, every=7)
    resumed = fit(make_module(), tmp_path / "c", resume=tmp_path / "b/step=14.ckpt")
    assert resumed.seen == whole[14:]


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 4), (3, 5), (5, 3)])
@pytest.mark.parametrize("step", [2, 3])
def test_another_batch_size_goes_on_where_the_samples_ended(
    make_module, tmp_path, before, after, step
):
    first = fit(make_module(before), tmp_path / "a", epochs=1).seen
    resumed = fit(make_module(after), tmp_path / "b", resume=tmp_path / f"a/step={step}.ckpt")
    order = [key for row in fit(make_module(1), tmp_path / "c", epochs=1).seen for key in row[2]]
    seen = [key for row in first[:step] + [r for r in resumed.seen if r[0] == 0] for key in row[2]]
    left = (23 - step * before) // after * after
    assert seen == order[: step * before + left]
    for epoch in (1, 2):  # whole again, in batches of the new size
        rows = [row for row in resumed.seen if row[0] == epoch]
        assert [row[1] for row in rows] == list(range(23 // after))


def test_a_limited_epoch_still_starts_the_next_at_its_beginning(make_module, tmp_path):
    seen = fit(make_module(), tmp_path, epochs=2, limit_train_batches=4).seen
    full = fit(make_module(), tmp_path, epochs=2).seen
    assert seen == [row for row in full if row[1] < 4]


def test_skipped_samples_reach_the_logger(make_module, make_shards, tmp_path):
    def change(number, content):
        return content | {"png": b"broken"} if number == 6 else content

    make_shards(COUNTS, change=change)
    logger = CSVLogger(tmp_path, version="0")
    fit(make_module(1, limits=Limits(max_errors=1)), tmp_path, epochs=2, logger=logger)
    assert logger.experiment.metrics_keys.count("data/skipped/decode") == 1


def test_validation_runs_in_full_and_without_a_source_not_at_all(make_module, tmp_path):
    assert fit(make_module(), tmp_path, epochs=2).validated == 2 * 4
    module = make_module()
    module.sources["val"] = None
    assert fit(module, tmp_path, epochs=1).validated == 0


def test_a_vocabulary_larger_than_the_net_s_is_refused(make_module, tmp_path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    module, data = Recorder(), make_module()
    module.net = torch.nn.Identity()
    module.net.vocab_size = 7
    with pytest.raises(ValueError, match=r"has 24 ids, the net's vocab_size is 7"):
        trainer.fit(module, datamodule=data)
