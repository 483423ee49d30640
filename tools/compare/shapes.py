"""What a comparison file says about a model's feed-forward layers, as a `LayerShape`.

    {preset: mh_moe_h2}                                 one of `mhmoe_mm.moe.budget.PRESETS`
    {preset: mh_moe_h2, merge_layers: 0}                the same with a number changed
    {match: smoe, num_heads: 4, top_k: 4}               solved for the parameters and multiply-adds
                                                        of the preset smoe
    {hidden: 100, num_experts: 8, top_k: 2}             a shape of its own: fields of LayerShape

`dim` is always that of the base net.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from mhmoe_mm.moe.budget import PRESETS, LayerShape, match

FIELDS = {field.name: field for field in fields(LayerShape)}
SOLVED = {"num_heads": None, "top_k": None, "multiple_of": 1, "projections": 2}
"""What `match` is given, with defaults where there are."""


def read_shape(entry: Mapping[str, Any], dim: int) -> LayerShape:
    """The shape that an entry describes.

    Raises:
        ValueError: something is unknown, missing, not a number or impossible; one sentence, without
            the place.
    """
    given = dict(entry)
    preset, base = given.pop("preset", None), given.pop("match", None)
    if preset is not None and base is not None:
        raise ValueError("`preset` and `match` exclude each other: leave one out.")
    solved = {key: given.pop(key) for key in SOLVED if base is not None and key in given}
    for key, value in (given | solved).items():
        _check(key, value)
    if given.pop("dim", dim) != dim:
        raise ValueError(f"dim is {entry['dim']}, but the base net has dim {dim}: leave it out.")
    if preset is not None:
        shape = replace(_preset(preset, dim), **given)
    elif base is not None:
        if lacking := [key for key in ("num_heads", "top_k") if key not in solved]:
            raise ValueError(f"`match` needs {lacking[0]} of the layer that is sought.")
        shape = replace(match(_preset(base, dim), **solved), **given)
    elif "hidden" not in given:
        known = ", ".join(sorted(PRESETS))
        raise ValueError(f"a shape has a `preset` ({known}), a `match`, or `hidden` at least.")
    else:
        shape = LayerShape(dim, **given)
    return _possible(shape)


def _preset(name: Any, dim: int) -> LayerShape:
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; known are {', '.join(sorted(PRESETS))}.")
    return PRESETS[name](dim)


def _check(key: str, value: Any) -> None:
    if key not in FIELDS and key not in SOLVED:
        known = ", ".join(["preset", "match", "options", *FIELDS])
        raise ValueError(f"there is no {key} of a model; known are {known}.")
    flag = key in FIELDS and FIELDS[key].type is bool
    if type(value) is not (bool if flag else int) or value < 0:
        what = "true or false" if flag else "a whole number, 0 or more"
        raise ValueError(f"{key} is {what}, got {value!r}.")


def _possible(shape: LayerShape) -> LayerShape:
    if min(shape.hidden, shape.num_experts, shape.top_k, shape.num_heads) < 1:
        raise ValueError("hidden, num_experts, top_k and num_heads are at least 1.")
    if shape.dim % shape.num_heads:
        raise ValueError(f"num_heads={shape.num_heads} does not divide the net's dim={shape.dim}.")
    if shape.top_k > shape.num_experts:
        raise ValueError(f"top_k={shape.top_k} is more than num_experts={shape.num_experts}.")
    if shape.matrices not in (2, 3):
        raise ValueError(f"matrices is 2 (GELU) or 3 (SwiGLU), got {shape.matrices}.")
    return shape
