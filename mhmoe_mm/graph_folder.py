"""Parts of a trained model as graphs, in a folder with all that their user needs.

FOLDER/
  answer.onnx        a part; several where several were asked for (.pt2 of torch.export)
  graph.json         inputs and outputs, how the parts were checked, sha256 of the files
  tokenizer.json     where there are texts; answers.json, classes.json likewise
  README.md          for people
"""

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mhmoe_mm.graphs import (
    KINDS,
    check_backend,
    check_parts,
    default_parts,
    described,
    export_graph,
)
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.loading import TASKS, built_net, checkpoint_of, read_model, task_of
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.storage.exported import CARD, LISTS, TOKENIZER
from mhmoe_mm.storage.whole import file_sha256, new_folder, publish_folder, write_bytes
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA

GRAPH, NET = "graph.json", "net."
_README = """# {name}

{about}

| part | inputs | output | largest difference from the model |
|---|---|---|---|
{rows}

`pixel` is uint8, RGB, squeezed to {size} x {size}, bicubic with antialiasing; the graph normalises
it. `token` are the ids of `tokenizer.json`, `<s>` in front and `</s>` behind; `pad` is true behind
the end. Batch and length of texts are free, a text has two tokens at least{longest}.

```python
{example}
```
"""
_ONNX = """import onnxruntime

session = onnxruntime.InferenceSession("{name}/{file}")
print(session.run(None, {{{feed}}})[0])"""
_TORCH = """import torch

run = torch.export.load("{name}/{file}").module()
print(run({feed}))"""


class Source(NamedTuple):
    """What graphs are made of."""

    net: BEiT3
    task: Task | None
    """None where the task cannot be asked anything: its network alone is exported."""
    texts: Texts | None
    path: Path


def export_graphs(
    path: str | Path,
    folder: Path,
    kind: str,
    parts: Sequence[str] = (),
    backend: str | None = None,
    tokenizer: str | Path | None = None,
    plugins: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write parts of a model as graphs, each checked against it; what graph.json says.

    Args:
        path: a checkpoint, the folder of a run for its last one, or an exported model.
        folder: to be; whole, or not there.
        kind: of `mhmoe_mm.graphs.KINDS`.
        parts: of `mhmoe_mm.graphs.PARTS`; none: those of its task, or the pair of the encoder.
        backend: of `mhmoe_mm.graphs.BACKENDS`, for sparse layers.
        tokenizer, plugins: as for `mhmoe_mm.load`.
        overwrite: replace a folder of graphs that is there.

    Raises:
        ValueError: the place is taken, or it holds no encoder or lacks a part, or the network
            cannot be exported, or the graph says something else than the model.
        OSError: the folder cannot be written.
    """
    _check_place(folder, overwrite)
    source = _read(path, tokenizer, tuple(plugins))
    names = list(dict.fromkeys(parts)) or default_parts(source.task)
    check_parts(names, source.task)
    check_backend(source.net, backend)
    contents = _texts(source)
    part = new_folder(folder)
    try:
        about: dict[str, Any] = {
            "format": 1,
            "mhmoe_mm": version("mhmoe-mm"),
            "torch": torch.__version__,
            "kind": kind,
            "backend": backend,
            "parts": {},
        }
        for name in names:
            file = f"{name}{KINDS[kind]}"
            checked = export_graph(name, source.net, source.task, kind, backend, part / file)
            about["parts"][name] = described(name, source.net, checked, file)
        if source.texts is not None:
            about["max_tokens"] = source.texts.max_tokens
        if isinstance(source.task, Retrieval):
            about["scale"] = source.task.logit_scale.exp().item()
        for name, content in contents.items():
            write_bytes(part / name, content.encode())
        about["files"] = {item.name: file_sha256(item) for item in sorted(part.iterdir())}
        write_bytes(part / GRAPH, (json.dumps(about, indent=1) + "\n").encode())
        write_bytes(part / CARD, _readme(folder.name, about, source).encode())
        publish_folder(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return about


def _read(path: str | Path, tokenizer: str | Path | None, plugins: tuple[str, ...]) -> Source:
    file = checkpoint_of(path)
    content, given = read_model(file)
    task, texts = None, None
    if given.get("_class_path") in TASKS:
        found = task_of(content, given, file, tokenizer=tokenizer, plugins=plugins)
        task, texts, net = found.task, found.texts, found.task.net
    else:
        net = built_net(given, plugins, file)
        weights = content["state_dict"].items()
        net.load_state_dict({n.removeprefix(NET): w for n, w in weights if n.startswith(NET)})
        if "texts" in content:
            texts = Texts.from_plain(content["texts"])
    if not isinstance(net, BEiT3):
        raise ValueError(
            f"{file} holds a {type(net).__name__}, and graphs are made of multiway encoders."
        )
    for module in (net, task):
        if module is not None:
            module.float().eval().requires_grad_(False)
    return Source(net, task, texts, file)


def _texts(source: Source) -> dict[str, str]:
    """The files of tokenizer and names."""
    contents: dict[str, str] = {}
    lists: dict[str, list[str] | None] = {}
    if source.texts is not None:
        contents[TOKENIZER] = source.texts.tokenizer.content
    if isinstance(source.task, VQA):
        lists["answers"] = source.task.answers
    if isinstance(source.task, ImageClassification):
        lists["classes"] = source.task.names
    for name, entries in lists.items():
        if entries is not None:
            contents[f"{name}.json"] = json.dumps(entries, ensure_ascii=False, indent=1) + "\n"
    return contents


def _check_place(folder: Path, overwrite: bool) -> None:
    """Refuse to write where something is that is not such a folder."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not overwrite:
        raise ValueError(
            f"{folder} exists already: name a new folder, or replace it with --overwrite."
        )
    known = {GRAPH, CARD, TOKENIZER, *(f"{name}.json" for name in LISTS)}
    ends = tuple(KINDS.values()) + tuple(f"{end}.data" for end in KINDS.values())
    if folder.is_symlink() or not folder.is_dir() or not (folder / GRAPH).exists():
        raise ValueError(f"{folder} is not a folder of graphs: it is not replaced.")
    for item in sorted(folder.iterdir()):
        if item.name not in known and not item.name.endswith(ends):
            raise ValueError(
                f"{folder} holds {item.name}, which is no part of a folder of graphs and would be "
                "lost: move it away, or name a new folder."
            )


def _readme(name: str, about: dict[str, Any], source: Source) -> str:
    rows = []
    for said in about["parts"].values():
        inputs = ", ".join(
            f"`{given}` {kind['dtype']} {_shape(kind['shape'])}"
            for given, kind in said["inputs"].items()
        )
        output = said["output"]
        shown = f"`{output['name']}` {output['dtype']} {_shape(output['shape'])}"
        difference = f"{said['checked']['difference']:.1e}"
        rows.append(f"| `{said['file']}` | {inputs} | {shown} | {difference} |")
    first = next(iter(about["parts"].values()))
    if about["kind"] == "onnx":
        feed = ", ".join(f'"{given}": {given}' for given in first["inputs"])
        example = _ONNX.format(name=name, file=first["file"], feed=feed)
    else:
        example = _TORCH.format(name=name, file=first["file"], feed=", ".join(first["inputs"]))
    experts = "" if about["backend"] is None else " All experts are computed for every token."
    task = (
        "An encoder" if source.task is None else f"A model of the task {type(source.task).__name__}"
    )
    longest = f" and {about['max_tokens']} at most in its training" if "max_tokens" in about else ""
    return _README.format(
        name=name,
        about=f"{task} of mhmoe-mm {about['mhmoe_mm']}, as {about['kind']} graphs.{experts}",
        rows="\n".join(rows),
        size=source.net.image_embedding.image_size,
        longest=longest,
        example=example,
    )


def _shape(axes: Sequence[int | str]) -> str:
    return "(" + ", ".join(str(axis) for axis in axes) + ")"
