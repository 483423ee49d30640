"""Plain lines of progress, for logs and pipes where a live bar would be noise."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """Prints a line every few seconds of training, evaluation and prediction, and one after each
    validation.

    Takes the place of Lightning's progress bar. A line of training holds the epoch, the step, the
    speed since the last line and the metrics that were logged with `prog_bar=True`; after a
    validation, the metrics named `val/...`, less those a level deeper (`val/experts/...`).
    """

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._mark = (0.0, 0)

    def disable(self) -> None:
        """Print nothing (Lightning calls this on all ranks but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._mark = (time.perf_counter(), trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        then, step = self._mark
        now = time.perf_counter()
        last = trainer.global_step >= self._steps(trainer)
        if trainer.global_step == step or (now - then < self.seconds and not last):
            return
        self._mark = (now, trainer.global_step)
        speed = (trainer.global_step - step) / (now - then)
        self._line(trainer, f"{speed:.3g} step/s", self.get_metrics(trainer, pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            logged = trainer.callback_metrics.items()
            metrics = {k: v for k, v in logged if k.startswith("val/") and k.count("/") == 1}
            self._line(trainer, "validated", metrics)

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Say how many batches are behind, unless that was done a moment ago. Of validations, those
        on their own: one between training steps ends in a line.
        """
        if trainer.state.fn == "fit":
            return
        then, before = self._mark
        now = time.perf_counter()
        if batch_idx == 0:
            self._mark = (now, 0)
        elif now - then >= self.seconds and self._enabled:
            self._mark = (now, batch_idx)
            command, total = self._evaluation(trainer)
            of = f"/{total:g}" if total != float("inf") else ""
            speed = f"{(batch_idx - before) / (now - then):.3g} batch/s"
            print(f"{command}  batch {batch_idx}{of}  {speed}", flush=True)

    on_validation_batch_start = on_predict_batch_start = on_test_batch_start

    @staticmethod
    def _evaluation(trainer: pl.Trainer) -> tuple[str, float]:
        """Which it is, and its number of batches: infinity where the data do not say."""
        assert trainer.state.fn is not None
        command = trainer.state.fn.value
        batches = {"validate": trainer.num_val_batches, "test": trainer.num_test_batches}
        return command, sum(batches.get(command, trainer.num_predict_batches))

    def _line(self, trainer: pl.Trainer, what: str, metrics: dict[str, Any]) -> None:
        if not self._enabled:
            return
        steps = self._steps(trainer)
        total = f"/{steps:g}" if steps != float("inf") else ""
        shown = "  ".join(
            f"{name} {float(value):.4g}" for name, value in metrics.items() if name != "v_num"
        )
        print(
            f"epoch {trainer.current_epoch}  step {trainer.global_step}{total}  {what}  {shown}",
            flush=True,
        )

    @staticmethod
    def _steps(trainer: pl.Trainer) -> float:
        if trainer.max_steps > 0:
            return trainer.max_steps
        epochs = (
            trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else float("inf")
        )
        return (
            epochs
            * (trainer.num_training_batches or float("inf"))
            // trainer.accumulate_grad_batches
        )
