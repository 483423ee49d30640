"""A callback that watches the experts: who works, how evenly, and whether chance would do better.

It reads the loads that a task's steps return under `"loads"`. On the hot path it adds device
tensors and nothing else; ranks and devices meet only when something is logged.
"""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from mhmoe_mm.callbacks.expert_report import (
    Row,
    as_record,
    complaint,
    details,
    headline,
    means,
    rows,
)
from mhmoe_mm.callbacks.expert_stats import LayerStats, layer_stats
from mhmoe_mm.callbacks.heatmap import draw_heatmap
from mhmoe_mm.callbacks.load_sums import LoadSums
from mhmoe_mm.callbacks.logged_images import log_image
from mhmoe_mm.storage.whole import write_whole

_log = logging.getLogger(__name__)
_LONGEST_LINE = 1 << 20  # bytes


class ExpertActivation(Callback):
    """Logs expert activation per layer and kind, to the logger, a JSONL file and a heatmap.

    - `<log_dir>/experts.jsonl`: a line per layer and event. Appended to; where a resumed run
      repeats steps, the later line counts.
    - `<log_dir>/experts/<stage>-<step>.png` after every validation or test, and
      `<log_dir>/experts.png`, the newest of them; also as an image in TensorBoard and other
      loggers that take images.
    - terminal: a line after every validation or test, and one per layer where experts are dead or
      overloaded.
    - logger: means over layers (`experts/activation_image`, ...), with `detail` every layer and
      kind too (`experts/<layer>/<kind>/...`); `val/experts/...` and `test/experts/...` alike.

    Every number is exact over all ranks and over all steps since the last event, accumulated
    micro-batches included. A checkpoint holds nothing of it: after a resume the first training
    event covers the steps since the resume. `docs/experts.md` says how to read the figures.

    Args:
        every_n_steps: Optimizer steps from one training event to the next.
        tau: Frequency above which an expert is active; by default half of an even share.
        taus: Further thresholds at which the activation is logged.
        detail: Log every layer and kind, not only means over layers.
        heatmap: Draw the pictures.
        overload: Warn when the fullest expert of a layer gets more than this many even shares.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        tau: float | None = None,
        taus: Sequence[float] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        detail: bool = False,
        heatmap: bool = True,
        overload: float = 4.0,
    ):
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, but is {every_n_steps}.")
        wrong = [t for t in ([] if tau is None else [tau]) + list(taus) if not 0 <= t < 1]
        if wrong:
            raise ValueError(
                f"tau and taus are frequencies in [0, 1), but {wrong[0]} is among them."
            )
        self.every_n_steps = every_n_steps
        self.tau = tau
        self.taus = tuple(taus)
        self.detail = detail
        self.heatmap = heatmap
        self.overload = overload
        self._train, self._eval = LoadSums(), LoadSums()
        self._last_event = 0
        self._layers: list[LayerStats] = []
        self._validated = False
        self._folder: Path | None = None
        self._said_dense = False

    def summary(self) -> list[Row]:
        """The newest validation or test as a table, one row per layer and kind.

        Before any, the newest training event; empty while there was none.
        """
        return rows(self._layers)

    # -- collecting ---------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # asks every rank
        debugging = getattr(trainer, "fast_dev_run", False)  # leaves no files behind
        self._folder = None if debugging else Path(folder)
        self._train, self._eval = LoadSums(), LoadSums()
        self._layers, self._validated = [], False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_event = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._train.add(outputs)
        if trainer.global_step - self._last_event >= self.every_n_steps:
            self._train_event(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step > self._last_event:
            self._train_event(trainer, pl_module)
        if self._layers and not self._validated:
            self._draw(trainer, "train")

    def _train_event(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_event = trainer.global_step
        self._event(trainer, pl_module, "train", self._train)
        self._train = LoadSums()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._eval = LoadSums()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._eval.add(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._event(trainer, pl_module, "val", self._eval)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._eval = LoadSums()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._eval.add(outputs)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._event(trainer, pl_module, "test", self._eval)

    # -- telling ------------------------------------------------------------------------------

    def _event(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, sums: LoadSums
    ) -> None:
        """Sum over ranks (every rank comes here), then tell: to the logger, to files, to people."""
        loads = sums.reduce(trainer)
        found = [layer_stats(name, load, self.tau, self.taus) for name, load in loads.items()]
        layers = [stats for stats in found if stats is not None]
        if not layers:
            self._say_dense(sums.steps)
            return
        if stage != "train" or not self._validated:
            self._layers = layers
        self._validated = self._validated or stage != "train"
        self._send(trainer, pl_module, stage, layers)
        if trainer.is_global_zero and self._folder is not None:
            event = {"stage": stage, "step": trainer.global_step, "epoch": trainer.current_epoch}
            lines = [event | {"batches": sums.steps} | as_record(s, self.taus) for s in layers]
            _append(self._folder / "experts.jsonl", lines)
        if stage != "train":
            self._draw(trainer, stage)
            found = [complaint(stats, self.overload) for stats in layers]
            troubles = [trouble for trouble in found if trouble]
            if trainer.is_global_zero:
                line = headline(layers, trainer.global_step, len(troubles))
                Console(highlight=False).print(line, soft_wrap=True)
            for trouble in troubles:
                _warn(trouble)

    def _say_dense(self, steps: int) -> None:
        if steps and not self._said_dense:
            _warn(
                f"ExpertActivation saw {steps} steps without a load: the model has no sparse layer "
                "or its steps do not return 'loads', so nothing is logged."
            )
            self._said_dense = True

    def _send(
        self, trainer: Trainer, pl_module: LightningModule, stage: str, layers: list[LayerStats]
    ) -> None:
        prefix = "experts" if stage == "train" else f"{stage}/experts"
        compact = {f"{prefix}/{name}": value for name, value in means(layers).items()}
        direct = {}
        if self.detail:
            direct = {f"{prefix}/{name}": v for name, v in details(layers, self.taus).items()}
        if stage == "train":
            # Lightning would hold these back until its own log_every_n_steps comes round.
            direct |= compact
        else:
            # Through the module, so that checkpoints and early stopping can watch them.
            pl_module.log_dict(compact, sync_dist=trainer.world_size > 1)
        for logger in trainer.loggers if direct else ():
            logger.log_metrics(direct, step=trainer.global_step)

    def _draw(self, trainer: Trainer, stage: str) -> None:
        """Keep one picture per event, and the newest where people look first."""
        if not self.heatmap or self._folder is None or not trainer.is_global_zero:
            return
        picture = self._folder / "experts" / f"{stage}-{trainer.global_step:08d}.png"
        draw_heatmap(self._layers, f"Expert load, {stage}, step {trainer.global_step}", picture)
        write_whole(self._folder / "experts.png", partial(shutil.copyfile, picture))
        log_image(trainer, f"{stage}/experts/load", picture)


@rank_zero_only
def _warn(sentence: str) -> None:
    _log.warning(sentence)


def _append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Add lines to a JSONL file; half a line, which a killed run may have left, is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _LONGEST_LINE, 0))
        tail = file.read()
        file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
        file.write("".join(f"{json.dumps(r, allow_nan=False)}\n" for r in records).encode())
