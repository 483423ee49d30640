"""The data module for masked pretraining: image-text shards in, `PretrainingBatch` out.

    train.pair / train.image / train.text     where the samples of each part of a batch lie
       -> Samples   read by number through the indexes of the shards        reading.py
       -> Order     which sample comes when                                 order.py
       -> row       decode, crop, choose a caption, tokenize, mask          samples.py
       -> Steps     position -> batch                                       steps.py
       -> loader    workers, threads, errors counted                        loading.py

The pair source defines the epoch (else the image source, else the text source).
"""

from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from datamodules.decoders import Limits
from datamodules.errors import Ledger
from datamodules.loading import EvaluationLoader, Loading, Progress, StepLoader, run_steps
from datamodules.masking import Masking, TextMask
from datamodules.order import NaturalOrder, Position, Schedule, ShuffledOrder
from datamodules.reading import Samples
from datamodules.resuming import align_batch_count, batches_of_epoch, data_rank
from datamodules.samples import (
    ImageSample,
    PairCollate,
    PairSample,
    TextCollate,
    TextSample,
    collate_images,
)
from datamodules.sources import Source, Sources, expand_shards
from datamodules.steps import EvaluationSteps, Feed, TrainingSteps
from datamodules.streaming import Stream, Streaming, run_stream
from datamodules.tokenization import Tokenizer
from datamodules.transforms import View

VIEW, MASKING, LIMITS, LOADING = View(), Masking(), Limits(), Loading()


class ShardDataModule(LightningDataModule):
    """Batches for masked data modelling from shards; see docs/data.md.

    Args:
        train: what to train on.
        tokenizer: path of a `tokenizer.json`.
        val: what to validate on; read in full, each sample once.
        test: what to test on, likewise.
        view: size and augmentation of images.
        masking: how much is masked.
        limits: caps on what is read, and how many bad samples may be skipped.
        loading: workers, threads, cache.
        streaming: read the training shards without indexes.
        seed: of the order and of every draw.
    """

    def __init__(
        self,
        train: Sources,
        tokenizer: str,
        val: Sources | None = None,
        test: Sources | None = None,
        view: View = VIEW,
        masking: Masking = MASKING,
        limits: Limits = LIMITS,
        loading: Loading = LOADING,
        streaming: Streaming | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test}
        self.tokenizer_path = tokenizer
        self.view = view
        self.masking = masking
        self.limits = limits
        self.loading = loading
        self.streaming = streaming
        self.seed = seed
        self.ledger = Ledger(limits.max_errors)
        """Samples that were skipped, by kind and shard, on this rank."""
        self.progress = Progress()
        self._feeds: dict[str, list[Any]] = {}
        self._samples: dict[tuple[str, ...], Samples] = {}
        self._schedule: Schedule | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read when it is first asked for."""
        if not hasattr(self, "_tokenizer"):
            self._tokenizer = Tokenizer(self.tokenizer_path)
        return self._tokenizer

    def setup(self, stage: str | None = None) -> None:
        """Find the shards, read their indexes, check that they can be used; once for each split."""
        self._check_vocabulary()
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in wanted.get(stage or "", ("train", "val", "test")):
            if self.sources[split] is not None and split not in self._feeds:
                self._feeds[split] = self._make_feeds(split)
        if "train" in self._feeds:
            self._check_sizes(data_rank(self.trainer)[1])

    def train_dataloader(self) -> StepLoader:
        """Batches of this rank, from where the run stopped."""
        loader = self.training_loader(*data_rank(self.trainer))
        align_batch_count(self.trainer, len(loader), loader.schedule, self.progress.start)
        return loader

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Every validation sample exactly once over all ranks."""
        return self._evaluation("val")

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """Every test sample exactly once over all ranks."""
        return self._evaluation("test")

    def training_loader(self, rank: int = 0, world: int = 1) -> StepLoader:
        """Training batches of one rank of a world; without Lightning, call
        `loader.sampler.set_epoch(epoch)` before each epoch.
        """
        self.setup("fit")
        self._check_sizes(world)
        feeds = self._feeds["train"]
        self._schedule = schedule = Schedule(self._total(), feeds[0].batch_size, rank, world)
        if self.streaming:
            run = partial(run_stream, feeds, schedule, self.loading)
        else:
            run = partial(run_steps, TrainingSteps(feeds, schedule), self.loading)
        return StepLoader(run, schedule, self.progress, self.ledger, self._report)

    def evaluation_loader(self, split: str, rank: int = 0, world: int = 1) -> EvaluationLoader:
        """Batches of one rank of a world that hold every sample of a split exactly once."""
        self.setup("validate" if split == "val" else split)
        steps = EvaluationSteps(self._feeds[split], rank, world)
        run = partial(run_steps, steps, self.loading)
        return EvaluationLoader(run, len(steps), self.ledger, self._report)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and samples consumed in it, over all ranks: valid at any number of ranks."""
        state = {"epoch": self.progress.epoch, "sample": self.progress.start}
        if self._schedule is not None:
            batches = batches_of_epoch(self.trainer, self._schedule, self.progress)
            state["sample"] += batches * self._schedule.global_batch
        return {**state, "tokenizer": self.tokenizer.sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the position of `state_dict`; raises when the tokenizer is another one."""
        if state_dict["tokenizer"] != self.tokenizer.sha256:
            raise ValueError(
                f"The checkpoint was made with another tokenizer (sha256 "
                f"{state_dict['tokenizer'][:12]}...) than {self.tokenizer_path} (sha256 "
                f"{self.tokenizer.sha256[:12]}...): token ids would change their meaning."
            )
        self.progress.resume(Position(state_dict["epoch"], state_dict["sample"]))

    def _evaluation(self, split: str) -> EvaluationLoader | list[Any]:
        if self.sources[split] is None:
            return []  # Lightning's way of saying that there is nothing to do
        return self.evaluation_loader(split, *data_rank(self.trainer))

    def _report(self) -> None:
        """Show what was skipped so far: a warning on each rank, the counts of rank 0 in loggers."""
        if self.ledger.report() and self.trainer is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics(self.ledger.metrics(), step=self.trainer.global_step)

    def _total(self) -> int:
        """Samples an epoch."""
        if self.streaming:
            return self.streaming.samples_per_epoch
        return len(self._feeds["train"][0].samples)

    def _make_feeds(self, split: str) -> list[Any]:
        sources = self.sources[split]
        assert sources is not None
        return [self._make_feed(split, part, source) for part, source in sources.present().items()]

    def _make_feed(self, split: str, part: str, source: Source) -> Feed | Stream:
        training = split == "train"
        streaming = self.streaming if training else None
        shards = expand_shards(source.shards, streaming is not None and streaming.allow_pipe)
        row, collate = self._make_row(part, source, training)
        if streaming:
            batch, seed = source.batch_size, self.seed
            return Stream(part, shards, row, collate, batch, seed, self.limits, streaming.shuffle)
        samples = self._samples.get(tuple(shards))
        if samples is None:
            samples = Samples(shards, self.limits, Path(self.loading.cache).expanduser())
            self._samples[tuple(shards)] = samples
        if training:
            order = ShuffledOrder(samples.counts, self.seed, part, self.loading.window)
        else:
            order = NaturalOrder(samples.counts)
        return Feed(
            part, samples, order, row, collate, source.batch_size, self.seed, self.limits.max_errors
        )

    def _make_row(self, part: str, source: Source, training: bool) -> tuple[Any, Any]:
        """How a sample becomes a row of a part, and rows become the part."""
        image = ImageSample(self.view, self.masking, training)
        if part == "image":
            return image, collate_images
        share = self.masking.pair_text_share if part == "pair" else self.masking.text_share
        mask = TextMask(self.tokenizer, share, self.masking)
        text = TextSample(source.languages, source.max_tokens, mask)
        collate = TextCollate(self.tokenizer, source.max_tokens)
        if part == "text":
            return text, collate
        return PairSample(image, text), PairCollate(collate)

    def _check_sizes(self, world: int) -> None:
        for feed in self._feeds["train"]:
            leads = feed is self._feeds["train"][0]
            if self.streaming and not leads:
                continue
            total = self._total() if leads else len(feed.samples)
            if total < feed.batch_size * world:
                raise ValueError(
                    f"train.{feed.part} has {total} samples an epoch, fewer than one step takes: "
                    f"batch_size {feed.batch_size} x {world} ranks = {feed.batch_size * world}."
                )

    def _check_vocabulary(self) -> None:
        module = getattr(self.trainer, "lightning_module", None)
        size = getattr(getattr(module, "net", None), "vocab_size", None)
        if isinstance(size, int) and size < self.tokenizer.vocab_size:
            raise ValueError(
                f"The tokenizer {self.tokenizer_path} has {self.tokenizer.vocab_size} ids, "
                f"the net's vocab_size is {size}: set it to {self.tokenizer.vocab_size} or more."
            )
