"""Plain lines of progress, for logs and pipes where a live bar would be noise."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar


class ProgressLines(ProgressBar):
    """Prints a line every few seconds of training and one after each validation.

    Takes the place of Lightning's progress bar. A line holds the epoch, the step, the speed since
    the last line and the metrics that were logged with `prog_bar=True`; after a validation, the
    metrics named `val/...`, less those a level deeper (`val/experts/...`).
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
