"""The configuration of a run, written beside its results."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from mhmoe_mm.storage.whole import write_bytes, write_text


class SaveConfig(SaveConfigCallback):
    """Writes `config.yaml` into the run's folder, whole or not at all.

    If the folder has one already (a run that goes on in the same place), the older one becomes
    `config.1.yaml`, `config.2.yaml` and so on. Values that came from the environment are written as
    `${oc.env:NAME}`.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, environment: Iterable[str] = ()
    ) -> None:
        super().__init__(parser, config, overwrite=True)
        self.environment = set(environment)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved:
            return
        self.already_saved = True
        folder = trainer.log_dir  # broadcast from rank 0, so every rank asks
        if trainer.is_global_zero and folder is not None:
            text = self.parser.dump(self.config, skip_unset=False, format="yaml")
            content = redacted(yaml.safe_load(text), self.environment)
            write(Path(folder), yaml.safe_dump(content, sort_keys=False))


def write(folder: Path, text: str) -> None:
    """Put `text` into `folder/config.yaml`, keeping what was there under the next free number."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "config.yaml"
    if target.exists():
        number = 1
        while (folder / f"config.{number}.yaml").exists():
            number += 1
        write_bytes(folder / f"config.{number}.yaml", target.read_bytes())
    write_text(target, text)


def redacted(content: Any, environment: Iterable[str]) -> Any:
    """The same content with every value of these environment variables replaced by a reference to
    it."""
    if isinstance(content, dict):
        return {key: redacted(value, environment) for key, value in content.items()}
    if isinstance(content, list):
        return [redacted(value, environment) for value in content]
    if isinstance(content, str):
        for name in environment:
            if value := os.environ.get(name):
                content = content.replace(value, f"${{oc.env:{name}}}")
    return content
