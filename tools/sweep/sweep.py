"""A sweep file: what is trained, what is varied, what is looked for, and for how long.

```yaml
name: heads
command: --config conf/trainer/cpu.yaml --config conf/runs/lm_shakespeare.yaml
space:                                     # any option of `mhmoe-mm fit`, without its dashes
  model.optimizer.lr: {float: [1.0e-4, 1.0e-2], log: true}
  model.net.num_layers: {int: [2, 8], step: 2}
  model.balance_weight: {choices: [0, 0.01, 0.1]}
  rows: {options: {few: --data.train.batch_size 8, long: --data.train.context 32}}
  layer.num_heads: {choices: [1, 2, 4]}    # a number of the feed-forward layers
layer: {base: conf/nets/lm_char.yaml, like: smoe, equal: [macs]}
metric: val/loss
direction: minimize                        # or maximize
value: last                                # or best: of what the run logged
sampler: tpe                               # or random, or grid
seed: 0                                    # of the sampler
budget: {trials: 20, seconds: 3600}        # either or both; seconds of all trials together
pruner: {startup_trials: 4, warmup_steps: 100}
heatmap: [layer.num_heads, model.balance_weight]
```
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tools.compare.cells import files_sha256
from tools.compare.comparison import read_yaml, words_of
from tools.sweep.layer import Layer, read_layer
from tools.sweep.space import LAYER, Dimension, cells_of, read_space

REQUIRED = ("name", "command", "space", "metric", "budget")
OPTIONAL = ("direction", "value", "sampler", "seed", "pruner", "heatmap", "layer")
OWN = ("name", "trainer.default_root_dir")
"""Options that every trial has of its own."""


@dataclass(frozen=True)
class Budget:
    """When no further trial is begun."""

    trials: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Pruner:
    """Which trials are ended early: worse than the median of the others at the same step.

    Args:
        startup_trials: so many are trained to their end first.
        warmup_steps: before this step no trial is ended.
    """

    startup_trials: int = 5
    warmup_steps: int = 0


@dataclass(frozen=True)
class Search:
    """What is looked for, and how."""

    metric: str
    direction: Literal["minimize", "maximize"] = "minimize"
    value: Literal["last", "best"] = "last"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    seed: int = 0
    pruner: Pruner | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says.

    Args:
        name: of the sweep, its study and its folder in `runs`.
        command: options of one `mhmoe-mm fit`.
        asked: what the trials depend on, as a sum: all of the file but the budget and the heatmap,
            and what the YAML files say that the command names.
        heatmap: two keys of the space, if there is one.
    """

    name: str
    command: tuple[str, ...]
    space: tuple[Dimension, ...]
    search: Search
    budget: Budget
    asked: str
    layer: Layer | None = None
    heatmap: tuple[str, str] | None = None

    @property
    def goes_on(self) -> bool:
        """Whether a trial that is run again goes on from its checkpoint."""
        pairs = zip(self.command, self.command[1:], strict=False)
        return ("--ckpt_path", "auto") in pairs or "--ckpt_path=auto" in self.command


def read_sweep(path: Path) -> Sweep:
    """A sweep file, checked.

    Raises:
        ValueError: it is not there, not YAML, or lacks or misnames something.
    """
    content = read_yaml(path)
    try:
        return _sweep(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _sweep(content: Any) -> Sweep:
    _keys(content, REQUIRED, OPTIONAL, "the file")
    name = str(content["name"])
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"`name` becomes a folder: letters, digits, . _ and -, got {name!r}.")
    space = read_space(content["space"])
    layer = read_layer(content["layer"]) if content.get("layer") is not None else None
    for dimension in space:
        if dimension.key.startswith(LAYER) and layer is None:
            raise ValueError(f"{dimension.key} is of a layer: say which net it is in by `layer`.")
        if dimension.key in OWN:
            raise ValueError(f"{dimension.key} cannot be varied: every trial has its own.")
    search = _search(content)
    if search.sampler == "grid":
        cells_of(space)
    command = words_of(content["command"])
    heatmap = content.get("heatmap")
    keys = {dimension.key for dimension in space}
    if heatmap is not None and not (
        isinstance(heatmap, list) and len(heatmap) == 2 and keys >= {*heatmap}
    ):
        raise ValueError(f"`heatmap` is two keys of the space, got {heatmap!r}.")
    depends = {key: content[key] for key in content if key not in ("budget", "heatmap")}
    text = json.dumps([depends, files_sha256(command), layer and layer.base_spec], sort_keys=True)
    return Sweep(
        name=name,
        command=command,
        space=space,
        search=search,
        budget=_budget(content["budget"]),
        asked=hashlib.sha256(text.encode()).hexdigest(),
        layer=layer,
        heatmap=None if heatmap is None else (heatmap[0], heatmap[1]),
    )


def _keys(content: Any, required: tuple[str, ...], optional: tuple[str, ...], what: str) -> None:
    if not isinstance(content, dict) or not {*required} <= content.keys():
        raise ValueError(f"{what} must have the keys {', '.join(required)}.")
    if unknown := sorted(content.keys() - {*required, *optional}):
        known = ", ".join((*required, *optional))
        raise ValueError(f"{what} has the key {unknown[0]}; known are {known}.")


def _search(content: dict[str, Any]) -> Search:
    for key, known in (
        ("direction", ("minimize", "maximize")),
        ("value", ("last", "best")),
        ("sampler", ("tpe", "random", "grid")),
    ):
        if content.get(key, known[0]) not in known:
            raise ValueError(f"`{key}` is {' or '.join(known)}, got {content[key]!r}.")
    if type(content.get("seed", 0)) is not int:
        raise ValueError(f"`seed` is a whole number, got {content['seed']!r}.")
    given = {
        key: content[key] for key in ("direction", "value", "sampler", "seed") if key in content
    }
    pruner = content.get("pruner")
    if pruner is not None:
        _keys(pruner, (), ("startup_trials", "warmup_steps"), "`pruner`")
        if not all(type(number) is int and number >= 0 for number in pruner.values()):
            raise ValueError(f"`pruner` maps its keys to whole numbers, got {pruner!r}.")
        pruner = Pruner(**pruner)
    return Search(str(content["metric"]), pruner=pruner, **given)


def _budget(given: Any) -> Budget:
    _keys(given, (), ("trials", "seconds"), "`budget`")
    trials, seconds = given.get("trials"), given.get("seconds")
    right = trials is None or (type(trials) is int and trials > 0)
    if not right or not (seconds is None or (type(seconds) in (int, float) and seconds > 0)):
        raise ValueError(f"`budget` has trials and seconds above 0, got {given!r}.")
    if trials is None and seconds is None:
        raise ValueError("`budget` has trials, seconds or both.")
    return Budget(trials, seconds)
