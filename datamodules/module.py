"""What all data modules over shards share: loaders, the count of bad samples, the exact position.

A subclass says what the parts of a batch are (`_make_feeds`); a batch is then a function of its
position alone, and a run resumes at the very sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import LightningDataModule

from datamodules.decoders import Limits
from datamodules.errors import Ledger
from datamodules.loading import EvaluationLoader, Loading, Progress, StepLoader, run_steps
from datamodules.order import Position, Schedule
from datamodules.reading import Samples
from datamodules.resuming import align_batch_count, batches_of_epoch, data_rank
from datamodules.steps import EvaluationSteps, Loaded, TrainingSteps
from mhmoe_mm.inputs.tokenization import Tokenizer

SPLITS_OF = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class EpochSize(NamedTuple):
    """How many rows an epoch has and how many of them one rank takes a step."""

    name: str
    total: int
    batch_size: int


class Meaning(NamedTuple):
    """A file that gives the numbers in a batch their meaning, and so must not change in a run."""

    path: str
    sha256: str
    consequence: str


class ShardedDataModule(LightningDataModule, ABC):
    """Batches from shards, the same ones at any number of workers, and across interruptions.

    Args:
        sources: by split, what to read; None where there is nothing.
        tokenizer: path of a `tokenizer.json`; None where there are no texts.
        limits: caps on what is read, and how many bad samples may be skipped.
        loading: workers, threads, cache.
        assemble: how the parts of a batch become one.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        tokenizer: str | None,
        limits: Limits,
        loading: Loading,
        assemble: Callable[[dict[str, Any]], Any],
    ):
        super().__init__()
        self.sources = dict(sources)
        self.tokenizer_path = tokenizer
        self.limits = limits
        self.loading = loading
        self.assemble = assemble
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
            if self.tokenizer_path is None:
                raise ValueError("These data have texts: set data.tokenizer to a tokenizer.json.")
            self._tokenizer = Tokenizer(self.tokenizer_path)
        return self._tokenizer

    @abstractmethod
    def _make_feeds(self, split: str) -> list[Any]:
        """The parts of a batch of a split; the first one defines the epoch."""

    def setup(self, stage: str | None = None) -> None:
        """Find the shards, read their indexes, check that they can be used; once for each split."""
        self._check_model(getattr(self.trainer, "lightning_module", None))
        for split in SPLITS_OF.get(stage or "", ("train", "val", "test")):
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
        leading = self._epoch_sizes()[0]
        self._schedule = schedule = Schedule(leading.total, leading.batch_size, rank, world)
        run = self._training_run(schedule)
        return StepLoader(run, schedule, self.progress, self.ledger, self._report)

    def evaluation_loader(self, split: str, rank: int = 0, world: int = 1) -> EvaluationLoader:
        """Batches of one rank of a world that hold every sample of a split exactly once."""
        self.setup("validate" if split == "val" else split)
        feeds = self._feeds[split]
        steps = EvaluationSteps(feeds, rank, world, self.assemble)
        run = partial(run_steps, steps, self.loading)
        num_rows = feeds[0].order.total if len(feeds) == 1 else None
        return EvaluationLoader(run, len(steps), num_rows, self.ledger, self._report)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and samples consumed in it, over all ranks: valid at any number of ranks."""
        state = {"epoch": self.progress.epoch, "sample": self.progress.start}
        if self._schedule is not None:
            batches = batches_of_epoch(self.trainer, self._schedule, self.progress)
            state["sample"] += batches * self._schedule.global_batch
        meanings = {name: meaning.sha256 for name, meaning in self._meanings().items()}
        return {**state, **meanings}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the position of `state_dict`; raises when the tokenizer is another one."""
        for name, meaning in self._meanings().items():
            if state_dict[name] != meaning.sha256:
                raise ValueError(
                    f"The checkpoint was made with another {name} (sha256 "
                    f"{state_dict[name][:12]}...) than {meaning.path} (sha256 "
                    f"{meaning.sha256[:12]}...): {meaning.consequence}."
                )
        self.progress.resume(Position(state_dict["epoch"], state_dict["sample"]))

    def _training_run(self, schedule: Schedule) -> Callable[[list[Position]], Iterator[Loaded]]:
        """How positions become batches."""
        steps = TrainingSteps(self._feeds["train"], schedule, self.assemble)
        return partial(run_steps, steps, self.loading)

    def _epoch_sizes(self) -> list[EpochSize]:
        """The sizes of the training feeds, the leading one first."""
        feeds = self._feeds["train"]
        return [EpochSize(f"train.{f.part}", len(f.samples), f.batch_size) for f in feeds]

    def _meanings(self) -> dict[str, Meaning]:
        """By name, the files that a checkpoint depends on."""
        if self.tokenizer_path is None:
            return {}
        consequence = "token ids would change their meaning"
        return {"tokenizer": Meaning(self.tokenizer_path, self.tokenizer.sha256, consequence)}

    def _samples_of(self, shards: list[str]) -> Samples:
        """The samples of some shards; the same object for the same shards."""
        samples = self._samples.get(tuple(shards))
        if samples is None:
            samples = Samples(shards, self.limits, Path(self.loading.cache).expanduser())
            self._samples[tuple(shards)] = samples
        return samples

    def _evaluation(self, split: str) -> EvaluationLoader | list[Any]:
        if self.sources[split] is None:
            return []  # Lightning's way of saying that there is nothing to do
        return self.evaluation_loader(split, *data_rank(self.trainer))

    def _report(self) -> None:
        """Show what was skipped so far: a warning on each rank, the counts of rank 0 in loggers."""
        if self.ledger.report() and self.trainer is not None:
            for logger in self.trainer.loggers:
                logger.log_metrics(self.ledger.metrics(), step=self.trainer.global_step)

    def _check_sizes(self, world: int) -> None:
        for name, total, batch_size in self._epoch_sizes():
            if total < batch_size * world:
                raise ValueError(
                    f"{name} has {total} samples an epoch, fewer than one step takes: "
                    f"batch_size {batch_size} x {world} ranks = {batch_size * world}."
                )

    def _check_model(self, module: Any) -> None:
        """Raise ValueError where the module that is trained does not fit the data."""
        size = getattr(getattr(module, "net", None), "vocab_size", None)
        if self.tokenizer_path and isinstance(size, int) and size < self.tokenizer.vocab_size:
            raise ValueError(
                f"The tokenizer {self.tokenizer_path} has {self.tokenizer.vocab_size} ids, "
                f"the net's vocab_size is {size}: set it to {self.tokenizer.vocab_size} or more."
            )
