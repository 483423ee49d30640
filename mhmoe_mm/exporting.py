"""From a checkpoint of a training to a folder for others: `mhmoe_mm.storage.exported`.

One process does it, whatever number of ranks wrote the checkpoint. The network is built without
memory, to see that the weights are its own and to count it.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mhmoe_mm.checkpoint.beit3 import to_beit3
from mhmoe_mm.checkpoint.weights import read_weights
from mhmoe_mm.inference import METHODS
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.loading import (
    TASKS,
    TRAINING_ONLY,
    built_net,
    checkpoint_of,
    hyper_parameters,
    texts_of,
)
from mhmoe_mm.models.net_cost import net_cost
from mhmoe_mm.run_record import sections
from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.exported import (
    LISTS,
    MOMENTS,
    TOKENIZER,
    check_place,
    is_exported,
    write_exported,
)
from mhmoe_mm.storage.model_card import TO_FINE_TUNE, model_card
from mhmoe_mm.storage.whole import write_whole
from mhmoe_mm.tasks.image_classification import ImageClassification

NET = "net."
"""Begins the names of a network's weights in a task."""


def export(
    path: str | Path,
    folder: Path,
    tokenizer: str | Path | None = None,
    plugins: Sequence[str] = (),
    overwrite: bool = False,
    moments: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write the model of a checkpoint as a folder for others; what its config.json says.

    Args:
        path: a checkpoint of `mhmoe-mm fit`, one file or a folder of shards; the folder of a run
            means its last one.
        folder: to be; whole, or not there.
        tokenizer: as for `mhmoe_mm.load`.
        plugins: packages that the network's classes may also come from.
        overwrite: replace an exported model that is there.
        moments: of the optimizer, as `mhmoe_mm.checkpoint.moments` names them, to lie beside the
            weights.

    Raises:
        ValueError: the place is taken, or there is no such checkpoint, or its weights are not those
            of the network that it describes.
        OSError: the folder cannot be written.
    """
    check_place(folder, overwrite)
    file = checkpoint_of(path)
    if is_exported(file):
        raise ValueError(f"{file} is an exported model already: copy the folder.")
    content = read_any(file, weights_alone=True)
    given = hyper_parameters(content, file)
    weights: dict[str, Tensor] = content["state_dict"]
    texts = _texts(content, given, tokenizer, file)
    lists = {name: content[name] for name in LISTS if content.get(name) is not None}
    init_args = {name: value for name, value in given.items() if name not in TRAINING_ONLY}
    kept = {f"{name}.json" for name in lists} | ({TOKENIZER} if texts else set())
    for name in init_args:
        if f"{name}.json" in kept:
            init_args[name] = f"{name}.json"  # was a path where it was trained
    config = {
        "mhmoe_mm": version("mhmoe-mm"),
        "task": {"class_path": init_args.pop("_class_path", None), "init_args": init_args},
        "step": content.get("global_step"),
        **_counted(init_args, weights, tuple(plugins), file),
    }
    told = sections(file, content.get("global_step"))
    card = _card(folder.name, config, texts, lists, plugins, told, len(moments or ()))
    write_exported(folder, config, weights, texts, lists, card, moments)
    return config


def export_beit3(path: str | Path, file: Path, overwrite: bool = False) -> tuple[str, int]:
    """Write the weights of a dense model under the names of the released BEiT-3 models.

    Args:
        path: a checkpoint, the folder of a run for its last one, or an exported model.
        file: to be; `.pth` is what the released code reads, tensors under `model`; `.safetensors`
            has the same names.
        overwrite: replace a file that is there.

    Returns:
        Which of the released models it is, and the number of tensors.

    Raises:
        ValueError: the place is taken or of another kind, or no released model has these weights.
        OSError: the file cannot be written.
    """
    if file.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{file} is to be a .pth or a .safetensors file: name it so.")
    if file.is_dir() or (file.exists() and not overwrite):
        raise ValueError(f"{file} exists already: name a new file, or replace it with --overwrite.")
    source = checkpoint_of(path)
    model, weights = to_beit3(read_weights(source), str(source))
    own = {
        name: weight.detach().clone(memory_format=torch.contiguous_format)
        for name, weight in weights.items()
    }
    if file.suffix == ".safetensors":
        write_whole(file, lambda part: save_file(own, part, {"format": "pt"}))
    else:
        write_whole(file, lambda part: torch.save({"model": own}, part))
    return model, len(own)


def _texts(
    content: dict[str, Any], given: dict[str, Any], tokenizer: str | Path | None, file: Path
) -> Texts | None:
    """How texts are read; None where the task reads none, or is asked nothing and kept none."""
    kind = TASKS.get(str(given.get("_class_path")))
    if kind is ImageClassification or (kind is None and "texts" not in content):
        return None
    return texts_of(content, given, tokenizer, file)


def _counted(
    init_args: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    plugins: tuple[str, ...],
    file: Path,
) -> dict[str, int]:
    """Parameters of the model, and those that a token goes through.

    Raises:
        ValueError: the network cannot be built, or the weights are others.
    """
    with torch.device("meta"):
        built = built_net(dict(init_args), plugins, file)
    wanted = {NET + name: weight.shape for name, weight in built.state_dict().items()}
    there = {name: weight.shape for name, weight in weights.items() if name.startswith(NET)}
    if differing := sorted({name for name, _ in wanted.items() ^ there.items()}):
        name = differing[0]
        raise ValueError(
            f"The weights in {file} are not those of the network that it describes: {name} is "
            f"{_shown(there.get(name))} there and should be {_shown(wanted.get(name))}."
        )
    cost = net_cost(built)
    heads = sum(weight.numel() for name, weight in weights.items() if name not in there)
    return {
        "parameters": cost.parameters + heads,
        "active_parameters": cost.active_parameters + heads,
    }


def _shown(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


_CODES = "It gives patches of images codes, the targets of pretraining (`VQKDCodes(path)`)."


def _card(
    name: str,
    config: Mapping[str, Any],
    texts: Texts | None,
    lists: Mapping[str, list[str]],
    plugins: Sequence[str],
    told: Mapping[str, Mapping[str, str]],
    moments: int,
) -> str:
    task = config["task"]
    net = task["init_args"]["net"]
    numbers = {
        key: value for key, value in net.get("init_args", {}).items() if type(value) in (int, float)
    }
    rows = {
        "task": f"`{task['class_path']}`",
        "network": f"`{net['class_path']}`",
        "its numbers": ", ".join(f"{key} {value}" for key, value in numbers.items()),
        "parameters": f"{config['parameters']:,}",
        "active parameters": f"{config['active_parameters']:,}, without the experts that a token, "
        "on average, does not reach",
        "training": f"{config['step']} steps",
    }
    if moments:
        rows["optimizer"] = (
            f"moments of AdamW, {moments:,} tensors in `{MOMENTS}`, which a training that starts "
            "from this folder goes on with"
        )
    if texts is not None:
        rows["tokenizer"] = (
            f"{texts.tokenizer.vocab_size:,} tokens; texts up to {texts.max_tokens} of them"
        )
    rows |= {about: f"{len(entries):,}" for about, entries in lists.items()}
    kind = TASKS.get(task["class_path"])
    about = f"A model of mhmoe-mm {config['mhmoe_mm']}."
    methods = () if kind is None else METHODS[kind]
    tag = str(task["class_path"]).rpartition(".")[2]
    otherwise = _CODES if tag == "ImageTokenizer" else TO_FINE_TUNE
    return model_card(name, about, rows, methods, [tag], told, plugins, otherwise)
