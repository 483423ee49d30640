"""Pictures to the loggers that take them."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image


def log_image(trainer: Trainer, name: str, picture: Path) -> None:
    """Show a PNG under this name at the trainer's step, in every TensorBoard logger and in others
    that have Lightning's `log_image`; those that take no images are passed over.
    """
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):
            logger.log_image(key=name, images=[str(picture)], step=trainer.global_step)  # pyright: ignore
