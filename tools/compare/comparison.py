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

`{previous}` in an option is the last checkpoint of the stage before.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REQUIRED = ("name", "stages", "models", "metrics")
OPTIONAL = ("seeds", "test", "chance")


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
    """

    name: str
    seeds: tuple[int, ...]
    models: dict[str, tuple[tuple[str, ...], ...]]
    test: tuple[str, ...]
    metrics: dict[str, str]
    chance: dict[str, float]


def read_comparison(path: Path) -> Comparison:
    """A comparison file, checked.

    Raises:
        ValueError: it is not there, not YAML, or lacks or misnames something.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
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
    common = _several(content["stages"])
    return Comparison(
        name=str(content["name"]),
        seeds=tuple(seeds),
        models={
            str(model): _stages(path, str(model), common, _several(own))
            for model, own in content["models"].items()
        },
        test=_words(content.get("test")),
        metrics=content["metrics"],
        chance=content.get("chance") or {},
    )


def _stages(
    path: Path, model: str, common: list[Any], own: list[Any]
) -> tuple[tuple[str, ...], ...]:
    """The options of every stage that a model goes through."""
    if len(own) != len(common):
        raise ValueError(
            f"{path}: {model} has options for {len(own)} stages, but `stages` has {len(common)}: "
            "give each model one entry per stage, an empty one if need be, or null where the model "
            "leaves the stage out."
        )
    both = zip(common, own, strict=True)
    stages = tuple((*_words(shared), *_words(more)) for shared, more in both if more is not None)
    if not stages:
        raise ValueError(f"{path}: {model} leaves out every stage: give it one to be trained in.")
    if any("{previous}" in word for word in stages[0]):
        raise ValueError(
            f"{path}: the first stage of {model} asks for {{previous}}, the checkpoint of the "
            "stage before, and there is none."
        )
    return stages


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _words(options: str | None) -> tuple[str, ...]:
    return tuple(shlex.split(options or ""))
