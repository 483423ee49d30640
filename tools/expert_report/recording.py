"""Routing recorded from a checkpoint: its task, the batches it is asked, and the chunks."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule

from mhmoe_mm.callbacks.routing_record import RoutingRecorder
from mhmoe_mm.callbacks.routing_tokens import RoutingChunk, chunks
from mhmoe_mm.inputs.spelling import Spelling, spelling_of
from mhmoe_mm.loading import LoadedTask, building, load_task
from mhmoe_mm.moe.sparse_layers import sparse_layers
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.tasks.base import Task
from tools.build_shards.errors import InputError
from tools.expert_report.training import thinned


class Data(NamedTuple):
    """The batches that routing is recorded on."""

    module: LightningDataModule
    split: str
    config: dict[str, Any]
    """Of the run that they are from."""

    def batches(self) -> Iterator[Any]:
        """All batches of the split, in one process."""
        with refused():
            if hasattr(self.module, "evaluation_loader"):
                yield from self.module.evaluation_loader(self.split)
                return
            self.module.setup("test" if self.split == "test" else "validate")
            loader = self.module.test_dataloader if self.split == "test" else None
            yield from (loader or self.module.val_dataloader)()

    @property
    def spelling(self) -> Spelling | None:
        """Of the texts, None where there are none."""
        with refused():
            return spelling_of(self.module)


@contextmanager
def refused() -> Iterator[None]:
    """What the library refuses is refused here too."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from error


def loaded(source: Path, device: str, plugins: Sequence[str]) -> LoadedTask:
    """The task of a checkpoint or a run; InputError where there is none with a sparse layer."""
    with refused():
        found = load_task(source, device, plugins=plugins)
    if not sparse_layers(found.task.net):
        raise InputError(
            f"The network in {found.file} has no sparse layer, so no experts to report on."
        )
    return found


def fill(task: Task, file: Path) -> int:
    """Give a task the weights of another checkpoint of its run; the steps that it had trained.

    Raises:
        InputError: the file cannot be read, or has other weights.
    """
    with refused():
        content = read_any(file, weights_alone=True)
        try:
            task.load_state_dict(content["state_dict"])
        except (KeyError, RuntimeError) as error:
            reason = (str(error).splitlines() or ["?"])[-1].strip()
            raise ValueError(f"{file} is no checkpoint of the same network: {reason}") from error
    return content.get("global_step") or 0


def run_folder_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is of, None where it lies alone."""
    folder = checkpoint.parent.parent
    return folder if (folder / "config.yaml").is_file() else None


def data_of(checkpoint: Path, config: Path | None, split: str, plugins: Sequence[str]) -> Data:
    """The data of a run, by the configuration beside its checkpoints or by the one that is given.

    Raises:
        InputError: there is no configuration, or it has no such data.
    """
    folder = run_folder_of(checkpoint)
    if config is None and folder is None:
        raise InputError(
            f"{checkpoint} lies in no run's folder, whose config.yaml says what data it read: name "
            "a configuration with data, --config FILE."
        )
    file = config or folder / "config.yaml"  # pyright: ignore[reportOptionalOperand]
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as a configuration: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise InputError(f"{file} has no `data`: name a configuration that has.")
    with refused(), building((*plugins, "datamodules"), file):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        module = parser.instantiate_classes(parser.parse_object({"data": content["data"]})).data
    if getattr(module, "sources", {split: True}).get(split) is None:
        raise InputError(f"{file} has no data.{split}: choose another --split, or name a --config.")
    return Data(module, split, content)


@torch.no_grad()
def recorded(
    task: Task, batches: Iterator[Any], spelling: Spelling | None, seen: Any = None
) -> Iterator[RoutingChunk]:
    """The routing of a task's evaluation, forward by forward.

    Args:
        task: in evaluation mode.
        batches: what it is asked; rows that only fill a batch up are not to be among them.
        spelling: of texts.
        seen: called with every batch and the task.
    """
    recorder = RoutingRecorder(task.net)
    torch.manual_seed(0)  # some routers draw
    for batch in batches:
        moved = move_data_to_device(batch, task.device)
        with recorder.recording(), refused():
            task.losses(moved)
        if seen is not None:
            seen(batch, task)
        yield from chunks(recorder.take(), batch, task, spelling)


def earlier(checkpoint: Path, most: int) -> list[Path]:
    """Older checkpoints of the same run, at most so many and evenly chosen, oldest first."""
    own = checkpoint.resolve()
    others = [path for path in sorted(own.parent.glob("*.ckpt"), key=_age) if not path.is_symlink()]
    if own not in [path.resolve() for path in others]:
        return []
    return thinned(others[: [path.resolve() for path in others].index(own)], most)


def _age(path: Path) -> tuple[int, float]:
    """By the steps in its name, or by its time."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.stat().st_mtime)
