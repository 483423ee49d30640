"""A comparison file: which models, trained how, and which figures are shown.

```yaml
name: easy_vqa
seeds: [0, 1, 2]
stages:                      # options of one `mhmoe-mm fit`, or of several in a row, for all models
  - --config conf/trainer/cpu.yaml --config conf/runs/pretrain.yaml
  - --config conf/trainer/cpu.yaml --config conf/runs/vqa.yaml
models:                      # what each adds to every stage; null leaves the stage out
  pretrained: ["", "--model.init_from {previous}"]
  from scratch: [null, ""]
  dense, from scratch: [null, "--model.net conf/nets/mini_dense.yaml"]
test: --data.test.batch_size 500        # what only the test gets
metrics: {test/accuracy: accuracy}      # key of test.json: heading
chance: {test/accuracy: 0.67}           # what guessing scores, by key; may be left out
```

`{previous}` in an option is the last checkpoint of the stage before. A model may also be a shape of
the feed-forward layers (tools/compare/shapes.py), which then stand in a base net:

```yaml
base: conf/nets/lm_char.yaml
models:
  dense: {preset: dense}
  SMoE: {preset: smoe}
  MH-MoE: {preset: mh_moe_h2, options: --model.balance_weight 0.02}
reference: SMoE              # the one that the others' costs are held against
tolerance: {parameters: 0.05, macs: 0.01}     # these are the defaults
curve: val/loss              # the logged figure that is drawn; this is the default
```
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mhmoe_mm.moe.budget import LayerShape
from tools.compare.matching import Tolerance
from tools.compare.shapes import read_shape

REQUIRED = ("name", "stages", "models", "metrics")
OPTIONAL = ("seeds", "test", "chance", "base", "reference", "tolerance", "curve")
NET = "{net}"
"""Stands in the options for the net file that is written for a model with a shape."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison file says.

    Args:
        name: of the comparison; its runs lie under `runs/NAME/MODEL/seed-N`.
        seeds: every model is trained once with each.
        models: by the name that the table shows, the options of each stage.
        test: options that only the test gets.
        metrics: which figures of `test.json` are shown, and under which heading.
        chance: what guessing would score, by metric; may be empty.
        base, base_spec: the net whose layers the shapes replace, and its YAML.
        shapes: of the models that have one; their options name their net as `NET`.
        reference: the model that the others' costs are held against, if there is one.
        tolerance: how far they may be from it.
        curve: which logged figure of the training is drawn.
    """

    name: str
    seeds: tuple[int, ...]
    models: dict[str, tuple[tuple[str, ...], ...]]
    test: tuple[str, ...]
    metrics: dict[str, str]
    chance: dict[str, float]
    base: Path | None = None
    base_spec: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, LayerShape] = field(default_factory=dict)
    reference: str | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    curve: str = "val/loss"


def read_comparison(path: Path) -> Comparison:
    """A comparison file, checked.

    Raises:
        ValueError: it is not there, not YAML, or lacks or misnames something.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not {*REQUIRED} <= content.keys():
        raise ValueError(f"{path} must have the keys {', '.join(REQUIRED)}.")
    if unknown := sorted(content.keys() - {*REQUIRED, *OPTIONAL}):
        known = ", ".join((*REQUIRED, *OPTIONAL))
        raise ValueError(f"{path} has the key {unknown[0]}; known are {known}.")
    for key in ("models", "metrics"):
        if not isinstance(content[key], dict) or not content[key]:
            raise ValueError(f"{path}: `{key}` maps names to values, got {content[key]!r}.")
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ValueError(f"{path}: `seeds` is a list of numbers, got {seeds!r}.")
    entries = {str(model): entry for model, entry in content["models"].items()}
    if len({folder_name(model) for model in entries}) < len(entries):
        raise ValueError(f"{path}: two models would have the same folder; give them other names.")
    shaped = {model: entry for model, entry in entries.items() if isinstance(entry, dict)}
    base, spec, shapes = _shapes(path, content.get("base"), shaped)
    common = _several(content["stages"])
    reference = content.get("reference")
    if reference is not None and str(reference) not in entries:
        raise ValueError(
            f"{path}: the reference {reference} is no model; there are {', '.join(entries)}."
        )
    return Comparison(
        name=str(content["name"]),
        seeds=tuple(seeds),
        models={
            model: _stages(path, model, common, *_own(entry, len(common)))
            for model, entry in entries.items()
        },
        test=words_of(content.get("test")),
        metrics=content["metrics"],
        chance=content.get("chance") or {},
        base=base,
        base_spec=spec,
        shapes=shapes,
        reference=None if reference is None else str(reference),
        tolerance=_tolerance(path, content.get("tolerance") or {}),
        curve=str(content.get("curve", "val/loss")),
    )


def folder_name(model: str) -> str:
    """The folder of a model's runs, by the name that the table shows."""
    return re.sub(r"[ /=]", "-", model.lower())


def read_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        ValueError: it is not there or not YAML; one sentence.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error


def read_base(path: str) -> dict[str, Any]:
    """The YAML of a net into which layers are put.

    Raises:
        ValueError: as `read_yaml`, or it is of something else.
    """
    spec = read_yaml(Path(path))
    dim = spec.get("init_args", {}).get("dim") if isinstance(spec, dict) else None
    if type(dim) is not int:
        raise ValueError(f"{path} is no net: it must have class_path and init_args with dim.")
    return spec


def _shapes(
    path: Path, base: Any, entries: Mapping[str, dict[str, Any]]
) -> tuple[Path | None, dict[str, Any], dict[str, LayerShape]]:
    """The base net with its YAML, and the shapes by model."""
    if not entries:
        return None, {}, {}
    if not isinstance(base, str):
        model = next(iter(entries))
        raise ValueError(
            f"{path}: {model} is the shape of a layer: name the net to put it into as `base`."
        )
    spec = read_base(base)
    dim, shapes = spec["init_args"]["dim"], {}
    for model, entry in entries.items():
        try:
            shapes[model] = read_shape({k: v for k, v in entry.items() if k != "options"}, dim)
        except ValueError as error:
            raise ValueError(f"{path}: {model}: {error}") from error
    return Path(base), spec, shapes


def _own(entry: Any, num_stages: int) -> tuple[list[Any], tuple[str, ...]]:
    """(a model's options by stage, what goes before them)."""
    if not isinstance(entry, dict):
        return _several(entry), ()
    own = _several(entry["options"]) if "options" in entry else [""] * num_stages
    return own, ("--model.net", NET)


def _stages(
    path: Path, model: str, common: list[Any], own: list[Any], net: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    """The options of every stage that a model goes through."""
    if len(own) != len(common):
        raise ValueError(
            f"{path}: {model} has options for {len(own)} stages, but `stages` has {len(common)}: "
            "give each model one entry per stage, an empty one if need be, or null where the model "
            "leaves the stage out."
        )
    both = zip(common, own, strict=True)
    stages = tuple(
        (*words_of(shared), *net, *words_of(more)) for shared, more in both if more is not None
    )
    if not stages:
        raise ValueError(f"{path}: {model} leaves out every stage: give it one to be trained in.")
    if any("{previous}" in word for word in stages[0]):
        raise ValueError(
            f"{path}: the first stage of {model} asks for {{previous}}, the checkpoint of the "
            "stage before, and there is none."
        )
    return stages


def _tolerance(path: Path, given: Any) -> Tolerance:
    known = Tolerance._fields
    right = isinstance(given, dict) and given.keys() <= {*known}
    if not right or not all(type(v) in (int, float) and v >= 0 for v in given.values()):
        raise ValueError(
            f"{path}: `tolerance` maps {' and '.join(known)} to shares such as 0.05, got {given!r}."
        )
    return Tolerance(**given)


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def words_of(options: str | None) -> tuple[str, ...]:
    """A text of options, cut as a shell would."""
    return tuple(shlex.split(options or ""))
