"""The live progress bar of a terminal."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme


class StepBar(RichProgressBar):
    """Lightning's rich bar, telling the step of the whole training.

    A run is usually limited by steps, of which Lightning's own says nothing ("Epoch 2/-2").
    """

    def __init__(self) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3f"))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What is shown behind the bar: the step, then what was logged for it."""
        shown: dict[str, Any] = {"step": f"{trainer.global_step:,}"}
        if trainer.max_steps > 0:
            shown["step"] += f"/{trainer.max_steps:,}"
        logged = super().get_metrics(trainer, pl_module)
        return shown | {name: value for name, value in logged.items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        last = self.trainer.max_epochs
        of = f"/{last - 1}" if last is not None and last > 0 else ""
        return f"{f'Epoch {current_epoch}{of}':{len(self.validation_description)}}"
