"""What makes predictions the same ones, and the folder that they were asked to lie in."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import Logger

from mhmoe_mm.command_line.resume import flat
from mhmoe_mm.command_line.weights import sha256

OF_TRAINING = (
    "model.optimizer",
    "model.schedule",
    "model.balance_weight",
    "model.z_weight",
    "model.init_from",
    "data.train",
    "data.val",
    "data.loading",
    "data.seed",
    "data.test.batch_size",
)
"""Parts of a configuration that change no prediction, or the last bits alone; the weights of
`init_from` count by what they are."""


def identity(
    config: Mapping[str, Any], precision: str, weights: Path, data: LightningDataModule
) -> dict[str, str | int | float | bool | list[Any] | None]:
    """What predictions depend on, by name: the sha256 of the weights and of the files that the data
    module knows, the model, the data, the precision.
    """
    kept = {part: config[part] for part in ("model", "data")}
    files = {
        f"{name} (sha256)": value
        for name, value in data.state_dict().items()
        if isinstance(value, str)
    }
    first = {"weights (sha256)": sha256(weights), "trainer.precision": precision}
    return {**first, **files, **dict(_lasting(kept))}


def _lasting(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in flat(config):
        if not f"{name}.".startswith(tuple(f"{part}." for part in OF_TRAINING)):
            yield name, value


class FolderLogger(Logger):
    """A folder that is the run's own, and nothing that is logged.

    The loggers of a training would overwrite what one left there.
    """

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return self.folder

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Nothing."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing."""
