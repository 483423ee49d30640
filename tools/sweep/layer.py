"""The feed-forward layers of a trial: numbers that are varied, and a width that is solved for.

```yaml
layer:
  base: conf/nets/lm_char.yaml    # the net whose feed-forward layers are replaced
  like: smoe                      # a preset of mhmoe_mm.moe.budget: what the layers are to cost
  equal: [macs]                   # and in what: macs, parameters, or both
  tolerance: {macs: 0.01}
  projections: 2                  # any number that is not varied
```

With the first of `equal` the inner width is solved, the other one is checked. If neither the file
nor the space says `num_experts` and both are to be equal, the number of experts is solved for too.
`top_k` is `num_heads` unless something is said, as in the second paper; one head has no maps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mhmoe_mm.models.net_cost import NetCost, net_cost
from mhmoe_mm.moe.budget import PRESETS, LayerShape, match_width
from mhmoe_mm.storage.whole import write_text
from tools.compare.comparison import read_base
from tools.compare.matching import Tolerance, remarks
from tools.compare.nets import built, net_of
from tools.compare.shapes import read_shape

COSTS = ("macs", "parameters")
OWN = ("base", "like", "equal", "tolerance")


class Infeasible(Exception):
    """There is no such layer, or none that costs what is asked; the message is the reason."""


@dataclass(frozen=True)
class Layer:
    """What a sweep file's `layer` says.

    Args:
        base, base_spec: the net whose layers are replaced, and its YAML.
        like: the preset that the layers are to cost as much as.
        equal: in which costs; empty where nothing is solved for.
        tolerance: how far they may be apart.
        numbers: of the layers that are not varied.
    """

    base: Path
    base_spec: dict[str, Any]
    like: str
    equal: tuple[str, ...]
    tolerance: Tolerance
    numbers: dict[str, Any]

    @property
    def dim(self) -> int:
        return self.base_spec["init_args"]["dim"]

    def shape(self, varied: Mapping[str, Any]) -> LayerShape:
        """The layer for these numbers.

        Raises:
            Infeasible: there is none.
        """
        numbers = {**self.numbers, **varied}
        try:
            return self._shape(numbers)
        except ValueError as error:
            raise Infeasible(str(error)) from error

    def _shape(self, numbers: dict[str, Any]) -> LayerShape:
        if not self.equal:
            return read_shape(numbers, self.dim)
        heads = numbers.setdefault("num_heads", 1)
        numbers.setdefault("top_k", heads)
        numbers.setdefault("projections", 0 if heads == 1 else 2)
        if "num_experts" not in numbers:
            return read_shape({"match": self.like, **numbers}, self.dim)
        top_k, experts = numbers["top_k"], numbers["num_experts"]
        solved = match_width(
            PRESETS[self.like](self.dim), heads, experts, top_k,
            "parameters" if self.equal[0] == "parameters" else "macs",
            numbers["projections"],
        )  # fmt: skip
        fields = {key: value for key, value in numbers.items() if key != "projections"}
        shape = replace(solved, **fields)
        # What the file says besides is checked there, and that the numbers go together.
        read_shape({"hidden": shape.hidden, **fields}, self.dim)
        return shape

    def write(self, varied: Mapping[str, Any], path: Path) -> NetCost:
        """Write the net of a trial and count what it costs.

        Raises:
            Infeasible: there is no such net, or it does not cost what is asked.
        """
        shape = self.shape(varied)
        spec = net_of(self.base_spec, shape)
        try:
            cost = net_cost(built(spec))
        except Exception as error:
            raise Infeasible(" ".join(str(error).split())[-300:]) from error
        if self.equal:
            reference = net_cost(built(net_of(self.base_spec, PRESETS[self.like](self.dim))))
            checked = {key: getattr(self.tolerance, key) for key in self.equal}
            tolerance = Tolerance(**{**dict.fromkeys(COSTS, float("inf")), **checked})
            for line in remarks({self.like: reference, "it": cost}, self.like, tolerance):
                if line.startswith("NOT MATCHED"):  # and not that one of the two has no experts
                    raise Infeasible(f"{line} Its experts would have {shape.hidden} features.")
        about = f"# Net   {self.base} with other feed-forward layers; written by tools.sweep\n"
        write_text(path, about + yaml.safe_dump(spec, sort_keys=False))
        return cost


def read_layer(given: Any) -> Layer:
    """A sweep file's `layer`, checked.

    Raises:
        ValueError: something is missing or unknown; one sentence, without the place.
    """
    if not isinstance(given, dict) or not isinstance(given.get("base"), str):
        raise ValueError(f"`layer` names the net to put layers into as `base`, got {given!r}.")
    spec = read_base(given["base"])
    equal = given.get("equal", [])
    if not isinstance(equal, list) or not {*equal} <= {*COSTS}:
        raise ValueError(f"`equal` is a list of {' and '.join(COSTS)}, got {equal!r}.")
    like = given.get("like")
    if equal and like not in PRESETS:
        raise ValueError(f"`like` is one of {', '.join(sorted(PRESETS))}, got {like!r}.")
    tolerance = given.get("tolerance", {})
    if not isinstance(tolerance, dict) or not tolerance.keys() <= {*COSTS}:
        raise ValueError(f"`tolerance` maps macs and parameters to shares, got {tolerance!r}.")
    numbers = {key: value for key, value in given.items() if key not in OWN}
    return Layer(
        Path(given["base"]), spec, str(like), tuple(equal), Tolerance(**tolerance), numbers
    )
