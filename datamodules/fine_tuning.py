"""The data module for fine-tuning and evaluation: shards in, the batches of one task out.

    train / val / test   where the samples lie, and how many rows a step takes
       -> Samples   read by number through the indexes of the shards    reading.py
       -> Rows      the questions, captions, ... of these samples       row_index.py
       -> Order     which row comes when                                order.py
       -> row       decode, crop, augment, tokenize                     vqa.py, nlvr2.py, ...
       -> Steps     position -> batch                                   steps.py

The length of an epoch counts rows.
"""

from pathlib import Path
from typing import Any

from datamodules.decoders import Limits
from datamodules.loading import EvaluationLoader, Loading
from datamodules.module import EpochSize, Meaning, ShardedDataModule
from datamodules.order import NaturalOrder, ShuffledOrder
from datamodules.row_index import Rows
from datamodules.sources import Source, expand_shards
from datamodules.steps import Feed, only_part
from datamodules.task_rows import Setting, TaskSamples
from datamodules.transforms import View
from mhmoe_mm.inputs.texts import Texts

VIEW, LIMITS, LOADING = View(), Limits(), Loading()
PART = "row"


class FineTuningDataModule(ShardedDataModule):
    """Batches for a task from shards; see docs/data.md.

    Args:
        train: what to train on.
        sample: the task, for example `datamodules.vqa.VqaSamples`.
        tokenizer: path of a `tokenizer.json`; None in a task without texts.
        val: what to validate on; every row exactly once over all ranks.
        test: what to test and predict on, likewise.
        view: size and augmentation of images.
        limits: caps on what is read, and how many bad samples may be skipped.
        loading: workers, threads, cache.
        seed: of the order and of every draw.
    """

    def __init__(
        self,
        train: Source | None,
        sample: TaskSamples,
        tokenizer: str | None = None,
        val: Source | None = None,
        test: Source | None = None,
        view: View = VIEW,
        limits: Limits = LIMITS,
        loading: Loading = LOADING,
        seed: int = 0,
    ):
        sources = {"train": train, "val": val, "test": test}
        if not any(sources.values()):
            raise ValueError("At least one of train, val and test must have a source.")
        for split, source in sources.items():
            if source and source.languages and not sample.reads_languages:
                raise ValueError(
                    f"{split}.languages has no meaning for {type(sample).__name__}: leave it out."
                )
        super().__init__(
            sources, tokenizer if sample.reads_text else None, limits, loading, only_part
        )
        self.sample = sample
        self.view = view
        self.seed = seed

    def predict_dataloader(self) -> EvaluationLoader | list[Any]:
        """Every test row exactly once over all ranks."""
        return self._evaluation("test")

    @property
    def class_names(self) -> list[str] | None:
        """What the model's classes or answers are called, in order; None in a task without."""
        names = self.sample.classes()
        return names.names if names else None

    @property
    def texts(self) -> Texts | None:
        """How the texts of an evaluation are read; None in a task without."""
        if not self.sample.reads_text:
            return None
        source = self.sources["val"] or self.sources["test"] or self.sources["train"]
        return Texts(self.tokenizer, source.max_tokens)

    def _make_feeds(self, split: str) -> list[Any]:
        source: Source = self.sources[split]
        training = split == "train"
        tokenizer = self.tokenizer if self.sample.reads_text else None
        task = self.sample.rows(Setting(source, self.view, tokenizer, training))
        samples = self._samples_of(expand_shards(source.shards))
        cache = Path(self.loading.cache).expanduser()
        rows = Rows(samples, task, cache, self.ledger, split)
        if training:
            order = ShuffledOrder(rows.counts, self.seed, PART, self.loading.window)
        else:
            order = NaturalOrder(rows.counts)
        max_errors = self.limits.max_errors
        return [
            Feed(PART, rows, order, task, task.collate, source.batch_size, self.seed, max_errors)
        ]

    def _epoch_sizes(self) -> list[EpochSize]:
        (feed,) = self._feeds["train"]
        return [EpochSize("train", len(feed.samples), feed.batch_size)]

    def _meanings(self) -> dict[str, Meaning]:
        names = self.sample.classes()
        return super()._meanings() | ({names.what: names.meaning()} if names else {})

    def _check_model(self, module: Any) -> None:
        super()._check_model(module)
        if names := self.sample.classes():
            names.check_model(module)
        net = getattr(module, "net", None)
        self.view.check_net(net)
        longest = getattr(getattr(net, "text_embedding", None), "max_text", None)
        for split, source in self.sources.items():
            if not source or not self.sample.reads_text or not isinstance(longest, int):
                continue
            if source.max_tokens > longest:
                raise ValueError(
                    f"{split}.max_tokens is {source.max_tokens}, but the net reads texts of at "
                    f"most max_text={longest} tokens: make either fit the other."
                )
