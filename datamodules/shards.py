"""The data module for masked pretraining: image-text shards in, `PretrainingBatch` out.

    train.pair / train.image / train.text     where the samples of each part of a batch lie
       -> Samples   read by number through the indexes of the shards        reading.py
       -> Order     which sample comes when                                 order.py
       -> row       decode, crop, choose a caption, tokenize, mask          samples.py
       -> Steps     position -> batch                                       steps.py
       -> loader    workers, threads, errors counted                        loading.py

The pair source defines the epoch (else the image source, else the text source).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from datamodules.decoders import Limits
from datamodules.loading import Loading
from datamodules.masking import Masking, TextMask
from datamodules.module import EpochSize, ShardedDataModule
from datamodules.order import NaturalOrder, Position, Schedule, ShuffledOrder
from datamodules.samples import (
    ImageSample,
    PairCollate,
    PairSample,
    TextCollate,
    TextSample,
    collate_images,
)
from datamodules.sources import Source, Sources, expand_shards
from datamodules.steps import Feed, Loaded, pretraining_batch
from datamodules.streaming import Stream, Streaming, run_stream
from datamodules.transforms import View

VIEW, MASKING, LIMITS, LOADING = View(), Masking(), Limits(), Loading()


class ShardDataModule(ShardedDataModule):
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
        sources = {"train": train, "val": val, "test": test}
        super().__init__(sources, tokenizer, limits, loading, pretraining_batch)
        self.view = view
        self.masking = masking
        self.streaming = streaming
        self.seed = seed

    def _training_run(self, schedule: Schedule) -> Callable[[list[Position]], Iterator[Loaded]]:
        if self.streaming:
            return partial(run_stream, self._feeds["train"], schedule, self.loading)
        return super()._training_run(schedule)

    def _epoch_sizes(self) -> list[EpochSize]:
        if not self.streaming:
            return super()._epoch_sizes()
        # Only the leading stream has a length, the one that was asked for.
        leading = self._feeds["train"][0]
        total = self.streaming.samples_per_epoch
        return [EpochSize(f"train.{leading.part}", total, leading.batch_size)]

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
        samples = self._samples_of(shards)
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
