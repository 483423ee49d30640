"""Nets of a comparison: a base net with feed-forward layers of another shape, as a file of its own.

The base is a net's YAML; the one mapping in it that has `dense` (a decoder's `init_args`, or those
of an encoder's layout) says what its layers are made of. A routed shape takes the place of `sparse`
there, and a dense one of both.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import nn

from mhmoe_mm.command_line.options import restricted_imports
from mhmoe_mm.models.net_cost import NetCost, net_cost
from mhmoe_mm.moe.budget import LayerShape
from mhmoe_mm.storage.whole import write_text
from tools.compare.cells import model_folder
from tools.compare.comparison import NET, Comparison

DENSE = {2: "mhmoe_mm.models.ffn.GeluFFN", 3: "mhmoe_mm.models.ffn.SwiGLUFFN"}
"""The dense net by its number of matrices."""


def write_nets(comparison: Comparison, runs: Path) -> tuple[Comparison, dict[str, NetCost]]:
    """Write the net of every model that has a shape, to `runs/NAME/MODEL/net.yaml`.

    Returns:
        The comparison whose options name these files, and by model what the nets cost.

    Raises:
        ValueError: the base net has no place for a layer, or a net cannot be built.
    """
    models, costs = dict(comparison.models), {}
    for model, shape in comparison.shapes.items():
        spec = net_of(comparison.base_spec, shape)
        try:
            costs[model] = net_cost(built(spec))
        except Exception as error:
            reason = " ".join(str(error).split())[-300:]
            raise ValueError(
                f"{comparison.base} with the layers of {model} cannot be built: {reason}"
            ) from error
        path = model_folder(runs, comparison.name, model) / "net.yaml"
        about = f"# Net   {model} of the comparison {comparison.name}: {comparison.base} with its\n"
        about += "#       layers; written by tools.compare, which writes it again with every call\n"
        write_text(path, about + yaml.safe_dump(spec, sort_keys=False))
        models[model] = tuple(
            tuple(str(path) if word == NET else word for word in stage) for stage in models[model]
        )
    return replace(comparison, models=models), costs


def net_of(base: Mapping[str, Any], shape: LayerShape) -> dict[str, Any]:
    """The base net's YAML with layers of this shape.

    Raises:
        ValueError: the base does not say in exactly one place what its layers are made of.
    """
    spec = copy.deepcopy(dict(base))
    places = list(_places(spec))
    if len(places) != 1:
        raise ValueError(
            f"the base net must have `dense`, the factory of its feed-forward nets, in one place; "
            f"it has it in {len(places)}."
        )
    place = places[0]
    if shape.routed:
        place["sparse"] = _sparse(shape, place)
    else:
        place["dense"], place["sparse"] = _dense(shape, shape.hidden, place), None
    return spec


def built(spec: Mapping[str, Any], device: str = "meta") -> nn.Module:
    """The net that a YAML describes; on the meta device, without memory for its weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net", required=True)
    with restricted_imports(()), torch.device(device):
        return parser.instantiate(parser.parse_object({"net": dict(spec)})).net


def _places(spec: Any) -> Iterator[dict[str, Any]]:
    if isinstance(spec, dict):
        if "dense" in spec:
            yield spec
        else:
            for value in spec.values():
                yield from _places(value)


def _sparse(shape: LayerShape, place: Mapping[str, Any]) -> dict[str, Any]:
    router: dict[str, Any] = {"top_k": int(shape.top_k)}
    if shape.embed_dim:
        scorer = {"embed_dim": shape.embed_dim}
        router["scorer"] = _named("mhmoe_mm.moe.XMoEScorer", scorer)
    form = "SwiGLUExperts" if shape.matrices == 3 else "GeluExperts"
    experts = {"hidden": shape.hidden, "bias": shape.bias, "sub_norm": shape.sub_norm}
    if quantization := (place["dense"] or {}).get("init_args", {}).get("quantization"):
        experts["quantization"] = quantization  # a net in few bits is so in all its products
    layer: dict[str, Any] = {
        "num_experts": shape.num_experts,
        "router": _named("mhmoe_mm.moe.TopKRouter", router),
        "experts": _named(f"mhmoe_mm.moe.{form}", experts),
    }
    if shape.shared_hidden:
        layer["shared"] = _dense(shape, shape.shared_hidden, place)
    if shape.num_heads == 1 and not shape.head_layers + shape.merge_layers:
        return _named("mhmoe_mm.moe.SparseMoE", layer)
    maps = {"head_layers": shape.head_layers, "merge_layers": shape.merge_layers}
    return _named("mhmoe_mm.moe.MHMoE", {"num_heads": shape.num_heads, **layer, **maps})


def _dense(shape: LayerShape, hidden: int, place: Mapping[str, Any]) -> dict[str, Any]:
    """As the base's dense nets, if those have the shape's form: biases and norms stay."""
    there = place["dense"] or {}
    if there.get("class_path") == DENSE[shape.matrices]:
        return _named(DENSE[shape.matrices], {**there.get("init_args", {}), "hidden": hidden})
    norm = {"sub_norm": shape.sub_norm} if shape.matrices == 2 else {}
    return _named(DENSE[shape.matrices], {"hidden": hidden, **norm})


def _named(class_path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}
