"""From a checkpoint to a `Model`: everything that it needs is in the file."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import instantiate_module
from torch import nn

from mhmoe_mm.checkpoint import check_path
from mhmoe_mm.command_line.options import restricted_imports
from mhmoe_mm.inference import METHODS, Model
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.exported import class_path, is_exported, read_exported
from mhmoe_mm.storage.sharded import is_sharded
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.image_classification import ImageClassification

TASKS: dict[str, type[Task]] = {class_path(kind): kind for kind in METHODS}
_CLASSIFICATION = class_path(ImageClassification)
REASON_AT_MOST = 400
"""Characters of what jsonargparse and torch have to say."""
TRAINING_ONLY = ("_instantiator", "optimizer", "schedule", "init_from", "annotations")
"""Hyper-parameters that using a model does not need; what they name need not be here."""


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    tokenizer: str | Path | None = None,
    plugins: str | Sequence[str] = (),
) -> Model:
    """The model in a checkpoint of `mhmoe-mm fit`, or in an export of one, ready for images and
    texts.

    No code of the file is run, and its classes come from this library, torch and `plugins` alone.

    Args:
        path: a checkpoint, the folder of a run (`runs/NAME/version_N`) for its last one, or the
            folder that `python -m tools.export` wrote.
        device: where the model computes.
        tokenizer: path of the `tokenizer.json` of a checkpoint that does not keep it: those that
            were written before checkpoints did.
        plugins: a package, or a list of them, that the network's classes may also come from.

    Raises:
        ValueError: there is no such checkpoint, or it cannot be read safely, or it holds nothing
            that can be asked, or its tokenizer is missing or another one.
    """
    found = load_task(path, device, tokenizer, plugins, kinds=TASKS)
    return Model(found.task, found.texts, str(found.file))


class LoadedTask(NamedTuple):
    """A task with the weights of a checkpoint, and what else the file holds."""

    task: Task
    """In evaluation mode, on its device."""
    texts: Texts | None
    """How texts are read; None where the task reads none, or one that nothing can be asked does not
    keep it."""
    step: int | None
    """Optimizer steps of the training, where the file says so."""
    file: Path


def load_task(
    path: str | Path,
    device: str | torch.device = "cpu",
    tokenizer: str | Path | None = None,
    plugins: str | Sequence[str] = (),
    kinds: Mapping[str, type[Task]] | None = None,
) -> LoadedTask:
    """The task of a checkpoint, whatever it is; arguments and errors as `load` has them.

    Args:
        kinds: the tasks that will do, by class path; None for all of this library and `plugins`.
    """
    file = checkpoint_of(path)
    return task_of(*read_model(file), file, device, tokenizer, plugins, kinds)


def task_of(
    content: dict[str, Any],
    given: dict[str, Any],
    file: Path,
    device: str | torch.device = "cpu",
    tokenizer: str | Path | None = None,
    plugins: str | Sequence[str] = (),
    kinds: Mapping[str, type[Task]] | None = None,
    left_out: Sequence[str] = TRAINING_ONLY,
) -> LoadedTask:
    """The task of what `read_model` read; arguments and errors as for `load_task`.

    Args:
        left_out: hyper-parameters that it is made without.
    """
    if kinds is not None:
        _check_kind(given, file, kinds)
    texts = None
    name = given.get("_class_path")
    if "texts" in content or tokenizer or (name in TASKS and name != _CLASSIFICATION):
        texts = texts_of(content, given, tokenizer, file)
    if "tokenizer" in given and texts is not None:
        given["tokenizer"] = texts.tokenizer.content
    if "answers" in content:
        given["answers"] = content["answers"]
    named = (plugins,) if isinstance(plugins, str) else tuple(plugins)
    task = _built(given, content, named, file, left_out)
    try:
        task.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {device} cannot be used here: {reason}") from error
    return LoadedTask(task.eval(), texts, content.get("global_step"), file)


def read_model(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint or an export holds, and what its task was made from; no code is run.

    Raises:
        ValueError: it cannot be read safely, or does not say what it was made from.
    """
    content = read_exported(file) if is_exported(file) else read_any(file, weights_alone=True)
    return content, hyper_parameters(content, file)


def checkpoint_of(path: str | Path) -> Path:
    """The checkpoint or export that a path names, the last one of a run's folder.

    Raises:
        ValueError: there is none.
    """
    check_path(str(path))
    file = Path(path)
    if not file.exists():
        raise ValueError(f"No such checkpoint: {path}.")
    if not file.is_dir() or is_sharded(file) or is_exported(file):
        return file
    last = file / "checkpoints" / "last.ckpt"
    if not last.exists():
        below = min(file.glob("version_*/checkpoints/last.ckpt"), default=None)
        such_as = below.parents[1] if below else "runs/NAME/version_0"
        raise ValueError(
            f"{path} is a folder without checkpoints/last.ckpt: name a checkpoint or the folder of "
            f"a run, such as {such_as}."
        )
    return last


def hyper_parameters(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """What the task of a checkpoint was made from; ValueError where it holds no task."""
    given = content.get("hyper_parameters", {})
    if not isinstance(given, dict) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(
            f"{file} does not hold a model: load a checkpoint of `mhmoe-mm fit`, which keeps "
            "hyper_parameters and a state_dict."
        )
    return dict(given)


def _check_kind(given: dict[str, Any], file: Path, kinds: Mapping[str, type[Task]]) -> None:
    name = given.get("_class_path")
    if not isinstance(name, str):
        raise ValueError(
            f"{file} does not say what its task was made from: load a checkpoint of `mhmoe-mm fit`."
        )
    if name not in kinds:
        askable = ", ".join(sorted(kind.__name__ for kind in kinds.values()))
        raise ValueError(
            f"{file} holds a model of the task {name.rsplit('.', 1)[-1]}, which cannot be asked "
            f"anything: load a checkpoint of {askable}."
        )


def texts_of(
    content: dict[str, Any], given: dict[str, Any], tokenizer: str | Path | None, file: Path
) -> Texts:
    """How the checkpoint's texts are read, by what it keeps or else by the files that are here."""
    if "texts" in content:
        try:
            texts = Texts.from_plain(content["texts"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{file} keeps a tokenizer that is damaged: {error}") from error
        if tokenizer is not None and Tokenizer(Path(tokenizer)).sha256 != texts.tokenizer.sha256:
            raise ValueError(f"{tokenizer} is not the tokenizer that {file} was trained with.")
        return texts
    source = tokenizer or given.get("tokenizer")
    if source is None:
        raise ValueError(
            f"{file} keeps no tokenizer, as checkpoints once did not: name the tokenizer.json that "
            "it was trained with, `load(path, tokenizer=...)`."
        )
    found = Tokenizer(Path(source))
    states = [state for state in content.values() if isinstance(state, dict) and "sample" in state]
    if any(state.get("tokenizer", found.sha256) != found.sha256 for state in states):
        raise ValueError(f"{source} is not the tokenizer that {file} was trained with.")
    try:
        return Texts(found, given["net"]["init_args"]["max_text"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} does not say how long the texts of its network are.") from error


def _built(
    given: dict[str, Any],
    content: dict[str, Any],
    plugins: tuple[str, ...],
    file: Path,
    left_out: Sequence[str],
) -> Task:
    """The task of these hyper-parameters with the checkpoint's weights."""
    needed = {name: value for name, value in given.items() if name not in left_out}
    # The weights that it starts with are replaced: the caller's random numbers stay.
    with building(plugins, file), torch.random.fork_rng(devices=[]):
        task = instantiate_module(Task, needed)
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"])
    return task


def built_net(given: dict[str, Any], plugins: tuple[str, ...], file: Path) -> nn.Module:
    """The network of these hyper-parameters, its weights fresh; ValueError says why it cannot be.

    On the default device: on `meta` it takes no memory.
    """
    net = given.get("net")
    if not isinstance(net, dict) or "class_path" not in net:
        raise ValueError(f"{file} does not say what its network was made from.")
    made = {"_class_path": net["class_path"], **net.get("init_args", {})}
    with building(plugins, file), torch.random.fork_rng(devices=[]):
        return instantiate_module(nn.Module, made)


@contextmanager
def building(plugins: tuple[str, ...], file: Path) -> Iterator[None]:
    """Make what a checkpoint describes from classes that it may name; ValueError where that fails
    says why.
    """
    try:
        with restricted_imports(plugins):
            yield
    except Exception as error:  # jsonargparse and torch raise many kinds, and long
        reason = " ".join(str(error).split())
        if denied := re.search(r"Importing '(\w+)([\w.]*)' is not allowed", reason):
            raise ValueError(
                f"The model in {file} needs {denied[1]}{denied[2]}, which is not of this library: "
                f'if you trust that package, load it with plugins=["{denied[1]}"].'
            ) from error
        if len(reason) > REASON_AT_MOST:
            reason = reason[:REASON_AT_MOST] + " ..."
        raise ValueError(f"The model in {file} cannot be built here: {reason}") from error
