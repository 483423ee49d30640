"""Predictions to a file in the format of their task, across interruptions and ranks.

batch -> is_predicted?  yes: no forward
      -> Task.predict_step -> rows -> partial_predictions.py    after every batch
end   -> rows in the order of the data set -> Task.prediction_file
"""

import json
from collections.abc import Callable, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from mhmoe_mm.callbacks.partial_predictions import Kept, PartialPredictions
from mhmoe_mm.callbacks.run_folder import run_folder
from mhmoe_mm.callbacks.skipped_samples import gathered, skipped_samples
from mhmoe_mm.prediction_files import PredictionFile, Row
from mhmoe_mm.storage.whole import write_text, write_whole
from mhmoe_mm.tasks.base import Task

NAMED_AT_MOST = 3
TERMINATED = 128 + 15
"""The exit status of a program that SIGTERM ended."""


class PredictionWriter(Callback):
    """Writes what `predict` finds into the task's file, every row of the data set once.

    Row i of batch b of rank r is row (b x batch size + i) x ranks + r of the data set, as in our
    data modules and in torch's distributed samplers. The same predictions into the same folder go
    on after an interruption, at any number of ranks; batches that are there make no forward. Rows
    that could not be read are counted, and their samples are named in `predictions.missing.json`.

    Args:
        folder: where to; None for the run's own.
        identity: gives what the predictions depend on, by name: plain values, which must be the
            same to go on. Asked on the first rank, once the data are set up.
    """

    def __init__(
        self, folder: str | None = None, identity: Callable[[], Mapping[str, Any]] | None = None
    ):
        self.folder = folder
        self.identity: Callable[[], Mapping[str, Any]] = identity or dict
        self._partial: PartialPredictions | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._partial = None
        if stage != "predict" or getattr(trainer, "fast_dev_run", False):
            return
        file = pl_module.prediction_file if isinstance(pl_module, Task) else None
        if file is None:
            raise ValueError(
                f"{type(pl_module).__name__} has nothing to predict: fine-tune a task such as VQA "
                "or Captioning from its checkpoint, with `--model.init_from`."
            )
        folder = Path(self.folder) if self.folder else run_folder(trainer)
        if folder is None:
            raise ValueError(
                "Without a logger a run has no folder for its predictions: choose one with "
                "`--predictions DIR`."
            )
        self._file: PredictionFile = file
        self._path = folder / file.name
        self._missing = folder / "predictions.missing.json"
        self._partial = PartialPredictions(folder)
        on_first_rank(trainer, self._check)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._partial is None:
            return
        assert isinstance(pl_module, Task)
        if lacking := pl_module.not_loaded:
            raise ValueError(
                f"Predictions need all weights, and {lacking[0]} (1 of {len(lacking)}) is not "
                "among those that the model starts from: give a checkpoint of the task with "
                "`--ckpt_path FILE`."
            )
        self._trainer = trainer
        self._total = num_rows(trainer.predict_dataloaders)
        sampler = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        self._rank, self._world = sampler["rank"], sampler["num_replicas"]
        self._batch_size = 0
        self._unread: set[int] = set()
        on_first_rank(trainer, self._begin)
        self._done = {kept.place: kept.key for kept in self._partial.read()}
        if self._done and (last := max(self._done)) >= self._total:
            self._refuse(f"row {last} is predicted there, the data have {self._total} rows here")
        trainer.strategy.barrier("predictions were read")
        self._partial.open(trainer.global_rank)
        self._asked, pl_module.is_predicted = pl_module.is_predicted, self._is_predicted
        if self._done:
            rank_zero_info(
                f"going on in {self._path.parent}: {len(self._done):,} of {self._total:,} rows are "
                "predicted already"
            )
        else:
            rank_zero_info(
                f"predictions go to {self._path}; should they be interrupted, the same command "
                f"with `--predictions {self._path.parent}` goes on"
            )

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._partial is None:
            return
        places = self._places(batch, batch_idx)
        rows = list(zip(places, batch.key, batch.valid.tolist(), strict=True))
        self._unread |= {place for place, _, valid in rows if not valid and place < self._total}
        if outputs:
            there = [(place, key) for place, key, valid in rows if valid]
            both = zip(there, outputs, strict=True)
            new = [Kept(*where, row) for where, row in both if where[0] not in self._done]
            self._partial.append(new)
            self._done |= {kept.place: kept.key for kept in new}
        if trainer.received_sigterm:  # Lightning heeds it in its other loops, not in this one
            raise SIGTERMException(TERMINATED)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._partial is None:
            return
        self._leave(pl_module)
        unread = set[int]().union(*gathered(self._unread))
        samples = skipped_samples(trainer)
        on_first_rank(trainer, lambda: self._finish(unread, samples))

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._partial is not None and self._partial.is_open:
            self._leave(pl_module)
            rank_zero_info(
                f"{len(self._done):,} of {self._total:,} rows are safe{self._on_this_rank()}; the "
                f"same command with `--predictions {self._path.parent}` goes on"
            )

    # -- which rows ---------------------------------------------------------------------------

    def _is_predicted(self, batch: Any, batch_idx: int) -> bool:
        """Whether all rows of a batch are there; ranks that share weights do a forward together.

        Raises ValueError where what is there belongs to another sample.
        """
        there = True
        rows = zip(self._places(batch, batch_idx), batch.key, batch.valid.tolist(), strict=True)
        for place, key, valid in rows:
            if not valid:  # what could not be read, and what only fills up the batch
                continue
            if self._done.get(place, key) != key:
                self._refuse(f"row {place} is {self._done[place]} there, {key} here")
            there = there and place in self._done
        strategy = self._trainer.strategy
        if self._world == 1 or isinstance(strategy, DDPStrategy):
            return there
        return strategy.reduce_boolean_decision(there, all=True)

    def _places(self, batch: Any, batch_idx: int) -> list[int]:
        """The numbers of a batch's rows in the data set; only the last batch is a smaller one."""
        self._batch_size = self._batch_size or len(batch.key)
        first = batch_idx * self._batch_size
        return [(first + i) * self._world + self._rank for i in range(len(batch.key))]

    # -- on the first rank --------------------------------------------------------------------

    def _check(self) -> None:
        assert self._partial is not None
        if self._path.exists():
            raise ValueError(
                f"{self._path} is there already: remove it, or choose another folder with "
                "`--predictions DIR`."
            )
        self._manifest = dict(self.identity())
        if differing := self._partial.differences(self._manifest):
            more = len(differing) - NAMED_AT_MOST
            self._refuse(
                "; ".join(differing[:NAMED_AT_MOST]) + (f"; and {more} more" if more > 0 else "")
            )

    def _refuse(self, difference: str) -> None:
        assert self._partial is not None
        raise ValueError(
            f"{self._partial.folder} holds predictions of something else ({difference}): choose "
            "another folder with `--predictions DIR`, or remove it to start over."
        )

    def _begin(self) -> None:
        assert self._partial is not None
        self._partial.begin(self._manifest)

    def _finish(self, unread: set[int], samples: dict[str, str]) -> None:
        assert self._partial is not None
        kept = {row.place: row for row in self._partial.read()}
        missing = sorted(unread - kept.keys())
        if left := self._total - len(kept) - len(missing):
            print(
                f"{left:,} of {self._total:,} rows are left (trainer.limit_predict_batches): the "
                f"same command with `--predictions {self._path.parent}` and without the limit goes "
                "on"
            )
            return
        if not kept:
            raise ValueError(f"None of the {self._total} rows could be predicted.")
        ordered = [kept[place] for place in sorted(kept)]
        self._check_unique(ordered)
        if missing or samples:
            content = json.dumps({"rows": missing, "samples": samples}, indent=1)
            write_text(self._missing, f"{content}\n")
        else:
            self._missing.unlink(missing_ok=True)  # of predictions that were removed
        rows: list[Row] = [entry.row for entry in ordered]
        write_whole(self._path, partial(self._file.write, rows))
        self._partial.remove()
        if missing or samples:
            print(
                f"{len(missing):,} of {self._total:,} rows are not predicted, for {len(samples)} "
                f"samples could not be read: {self._missing} names them"
            )
        print(f"{len(rows):,} predictions are in {self._path}", flush=True)

    def _check_unique(self, ordered: list[Kept]) -> None:
        """Raise ValueError where two rows have the same `unique`."""
        first: dict[Any, Kept] = {}
        for kept in ordered:
            name = self._file.id_of(kept.row)
            if name is not None and (other := first.setdefault(name, kept)) is not kept:
                raise ValueError(
                    f"{self._file.unique} {name} comes twice, in rows {other.place} ({other.key}) "
                    f"and {kept.place} ({kept.key}): a result file may have it once, so none is "
                    f"written; {self._path.parent} keeps the predictions."
                )

    def _leave(self, module: LightningModule) -> None:
        assert self._partial is not None
        self._partial.close()
        assert isinstance(module, Task)
        module.is_predicted = self._asked

    def _on_this_rank(self) -> str:
        return " on the first rank" if self._world > 1 else ""


def on_first_rank(trainer: Trainer, act: Callable[[], None]) -> None:
    """Do something on the first rank while the others wait; what it refuses, all refuse."""
    problem: Exception | None = None
    if trainer.is_global_zero:
        try:
            act()
        except (ValueError, OSError) as error:
            problem = error
    problem = trainer.strategy.broadcast(problem)
    if problem is not None:
        raise problem


def num_rows(loader: Any) -> int:
    """Of a data set, over all ranks: the loader's `num_rows`, or the length of its `dataset`.

    Raises ValueError where neither is known: nobody could tell when predictions are complete.
    """
    if isinstance(loader, list):  # of one, for Lightning lets no task have several
        (loader,) = loader
    rows, data = getattr(loader, "num_rows", None), getattr(loader, "dataset", None)
    if rows is None and isinstance(data, Sized):
        rows = len(data)
    if rows is None:
        raise ValueError(
            f"{type(loader).__name__} does not say how many rows it has (`num_rows`), so nobody "
            "could tell when the predictions are complete."
        )
    return rows
