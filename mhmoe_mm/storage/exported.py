"""Trained models as others take them: a folder of weights and plain texts.

    FOLDER/
      config.json        what the model is made from, and the sha256 of the files below
      model.safetensors  the weights, named as in the state dict of the task
      optimizer.safetensors  moments of AdamW to go on with; where upcycling kept them
      tokenizer.json     that of the training, to the byte; where texts are read
      answers.json       of VQA, in the order of its scores; likewise classes.json
      README.md          for people; not read

`read_exported` gives what a checkpoint would hold. Nothing in the folder is run.
"""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.storage.sealed import Damaged
from mhmoe_mm.storage.whole import (
    check_space,
    file_sha256,
    new_folder,
    publish_folder,
    write_bytes,
    write_whole,
)

FORMAT = 1
MOMENTS = "optimizer.safetensors"
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
LISTS = ("answers", "classes")
"""Entries of checkpoints that are lists of names, each in a file of its own."""
FILES = {CONFIG, WEIGHTS, MOMENTS, TOKENIZER, CARD, *(f"{name}.json" for name in LISTS)}


def class_path(kind: type) -> str:
    """As a configuration names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_exported(path: Path) -> bool:
    """Whether it is the folder of an exported model, or what is left of one."""
    return path.is_dir() and any((path / name).exists() for name in (CONFIG, WEIGHTS))


def check_place(folder: Path, overwrite: bool) -> None:
    """Refuse to write where something is already.

    Raises:
        ValueError: there is something; with `overwrite`, something that is not an exported model
            and nothing else.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ValueError(
            f"{folder} exists already: name a new folder, or replace it with --overwrite."
        )
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder} is not a folder of an exported model: it is not replaced.")
    read_config(folder)
    if others := sorted({path.name for path in folder.iterdir()} - FILES):
        raise ValueError(
            f"{folder} holds {others[0]}, which is no part of an exported model and would be lost: "
            "move it away, or name a new folder."
        )


def write_exported(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    texts: Texts | None,
    lists: Mapping[str, list[str]],
    card: str,
    moments: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a folder, whole or not at all; one that is there is replaced.

    Args:
        folder: to be.
        config: plain values: `task`, with `class_path` and `init_args`, and what else is known.
        weights: on the CPU, by their names in the state dict.
        texts: how texts are read, where they are.
        lists: by names of `LISTS`.
        card: the README.
        moments: of the optimizer, as `mhmoe_mm.checkpoint.moments` names them.

    Raises:
        OSError: it cannot be written; what was there before stays.
        ValueError: the configuration has values that JSON does not.
    """
    contents = {f"{name}.json": _json(list(entries)) for name, entries in lists.items()}
    about: dict[str, Any] = {"format": FORMAT, **config}
    if texts is not None:
        contents[TOKENIZER] = texts.tokenizer.content
        about["tokenizer"] = {
            "sha256": texts.tokenizer.sha256,
            "vocab_size": texts.tokenizer.vocab_size,
            "max_tokens": texts.max_tokens,
        }
    _json(about)  # raises now, not when the weights are written
    part = new_folder(folder)
    try:
        tensors = {WEIGHTS: weights} | ({MOMENTS: moments} if moments else {})
        check_space(part, sum(t.nbytes for held in tensors.values() for t in held.values()))
        for name, held in tensors.items():
            write_whole(part / name, partial(_save, _unshared(held)))
        for name, content in contents.items():
            write_bytes(part / name, content.encode())
        listed = (*tensors, *(f"{name}.json" for name in lists))
        about["files"] = {name: file_sha256(part / name) for name in listed}
        write_bytes(part / CONFIG, _json(about).encode())
        write_bytes(part / CARD, card.encode())
        for name in tensors:
            shutil.copymode(part / CARD, part / name)  # safetensors lets only the writer read
        publish_folder(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def read_exported(folder: Path) -> dict[str, Any]:
    """What a checkpoint would hold of the model, all of it verified. The weights are mapped: they
    take memory as they are read.

    Raises:
        Damaged: it is not what was written, or of a later version.
    """
    config = read_config(folder)
    try:
        task, files, tokenizer = config["task"], dict(config["files"]), config.get("tokenizer")
        content: dict[str, Any] = {
            "hyper_parameters": {"_class_path": task["class_path"], **task["init_args"]}
        }
        if tokenizer is not None:
            files[TOKENIZER] = tokenizer["sha256"]
            content["texts"] = {key: tokenizer[key] for key in ("sha256", "max_tokens")}
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{folder / CONFIG} is damaged: it lacks what it should say.") from error
    for name in sorted({WEIGHTS, *files}):
        path = folder / name
        if name not in FILES or not path.is_file():
            raise Damaged(f"{folder} is not whole: {name} is missing.")
        if file_sha256(path) != files.get(name):
            raise Damaged(
                f"{path} is not what was exported: its sha256 is another than {CONFIG} says."
            )
    try:
        content["state_dict"] = load_file(folder / WEIGHTS)
        if tokenizer is not None:
            content["texts"]["tokenizer"] = (folder / TOKENIZER).read_bytes().decode()
        for name in LISTS:
            if f"{name}.json" in files:
                content[name] = json.loads((folder / f"{name}.json").read_bytes())
    except (SafetensorError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise Damaged(f"{folder} holds files that cannot be read: {reason}.") from error
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of an exported model.

    Raises:
        Damaged: there is none, or it is of something else, or of a later version.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{folder} is no exported model, or it lacks its {CONFIG}.") from error
    except ValueError as error:
        raise Damaged(f"{path} is damaged: it is not JSON.") from error
    if not isinstance(config, dict) or not {"format", "mhmoe_mm", "task"} <= config.keys():
        raise Damaged(f"{path} is not that of a model that `python -m tools.export` wrote.")
    if config["format"] != FORMAT:
        raise Damaged(
            f"{folder} has the format {config['format']} (mhmoe-mm {config['mhmoe_mm']}); this "
            f"version reads {FORMAT}: install the other one."
        )
    return config


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, {"format": "pt"})


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, without those that share memory with others, which the format refuses: of
    these all but the first are copied.
    """
    seen: set[int] = set()
    own = {}
    for name, weight in weights.items():
        place = weight.untyped_storage().data_ptr()
        own[name] = weight.contiguous()
        if place in seen and own[name] is weight:
            own[name] = weight.clone()
        seen.add(place)
    return own


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"The model has settings that are no plain values: {error}.") from error
