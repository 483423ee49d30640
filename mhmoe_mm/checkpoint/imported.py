"""A model of others as a folder of ours, which `mhmoe_mm.load` and `init_from` read."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.storage.exported import TOKENIZER, check_place, write_exported
from mhmoe_mm.storage.model_card import model_card


class Imported(NamedTuple):
    """A model under our names."""

    title: str
    """What it is, for people."""
    task: str
    """The class path of its task."""
    init_args: dict[str, Any]
    """Of the task, plain values."""
    weights: dict[str, Tensor]
    """By their names in the state dict of the task, float32."""
    names: dict[str, str]
    """From every name in the file to ours."""
    notes: list[str]
    """What else was done, a line for each."""
    methods: tuple[str, ...]
    """What it can be asked."""
    reads_texts: bool
    """Whether it needs a tokenizer to be asked."""
    max_tokens: int
    """Longest text of an evaluation."""
    list_name: str | None = None
    """`answers` or `classes`, where its scores have names."""
    list_length: int = 0


def write_imported(
    folder: Path,
    model: Imported,
    source: str,
    tokenizer: str | Path | None = None,
    entries: list[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the folder, whole or not at all; what is to be said of it.

    Args:
        folder: to be.
        model: what was imported.
        source: the name of the file, for the card.
        tokenizer: a tokenizer.json or a SentencePiece model.
        entries: the names of the scores, where there are some; None: their numbers.
        overwrite: replace an exported model that is there.

    Raises:
        ValueError: the place is taken, or the tokenizer or the names are not those of the model.
        OSError: the folder cannot be written.
    """
    check_place(folder, overwrite)
    said, init_args, lists = [], dict(model.init_args), {}
    texts = _texts(model, tokenizer)
    if texts is None and model.reads_texts:
        said.append("no tokenizer: give it as mhmoe_mm.load(path, tokenizer=...)")
    if texts is not None and "tokenizer" in init_args:
        init_args["tokenizer"] = TOKENIZER
    if entries is not None and model.list_name is None:
        raise ValueError(f"{source} scores nothing that has names: {model.title}.")
    if model.list_name is not None:
        lists[model.list_name] = _entries(model, entries)
        if entries is None:
            said.append(f"no names for the {model.list_name}: they are called by their numbers")
        if model.list_name == "answers":
            init_args["answers"] = "answers.json"
    parameters = sum(weight.numel() for weight in model.weights.values())
    config = {
        "mhmoe_mm": version("mhmoe-mm"),
        "task": {"class_path": model.task, "init_args": init_args},
        "step": None,
        "imported_from": source,
        "parameters": parameters,
    }
    rows = {
        "what": model.title,
        "imported from": f"`{source}`",
        "task": f"`{model.task}`",
        "parameters": f"{parameters:,}",
    }
    if texts is not None:
        rows["tokenizer"] = f"{texts.tokenizer.vocab_size:,} tokens; texts up to {texts.max_tokens}"
    about = f"A model of others, imported by mhmoe-mm {version('mhmoe-mm')}."
    card = model_card(folder.name, about, rows, model.methods)
    write_exported(folder, config, model.weights, texts, lists, card)
    return said


def read_entries(path: Path) -> list[str]:
    """Names in the order of scores: a JSON list, or lines of JSON with `answer` and `label`, the
    number, as the released code writes them.

    Raises:
        ValueError: it is neither, or the numbers have gaps.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    try:
        whole = json.loads(content)
    except ValueError:
        whole = None
    if isinstance(whole, list) and all(isinstance(entry, str) for entry in whole):
        return whole
    try:
        lines = [json.loads(line) for line in content.splitlines() if line.strip()]
        numbered = {int(line["label"]): str(line["answer"]) for line in lines}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is neither a JSON list of strings nor lines of JSON with answer and label."
        ) from error
    if sorted(numbered) != list(range(len(lines))):
        raise ValueError(f"The labels in {path} are not the numbers 0 to {len(lines) - 1}.")
    return [numbered[number] for number in range(len(lines))]


def _texts(model: Imported, tokenizer: str | Path | None) -> Texts | None:
    if tokenizer is None:
        return None
    texts = Texts(Tokenizer(Path(tokenizer)), model.max_tokens)
    rows = _vocabulary(model.init_args)
    if rows is None:
        raise ValueError(f"{model.title} reads no texts: leave --tokenizer out.")
    if texts.tokenizer.vocab_size > rows:
        raise ValueError(
            f"The tokenizer {tokenizer} has {texts.tokenizer.vocab_size} tokens, more than the "
            f"{rows} that the network knows: it is another one's."
        )
    return texts


def _vocabulary(init_args: Mapping[str, Any]) -> int | None:
    return init_args.get("net", {}).get("init_args", {}).get("vocab_size")


def _entries(model: Imported, entries: list[str] | None) -> list[str]:
    if entries is None:
        return [str(number) for number in range(model.list_length)]
    if len(entries) != model.list_length:
        raise ValueError(
            f"The model scores {model.list_length} {model.list_name}, and there are "
            f"{len(entries)} names."
        )
    if len(set(entries)) < len(entries):
        raise ValueError(f"Some of the {len(entries)} names of {model.list_name} occur twice.")
    return entries
