"""The released decoders of MH-MoE, whose experts several ranks may have written, as ours.

Every rank writes the experts that it holds, numbered from 0, with or without all other weights;
here they are one model again, its experts stacked. Layers are renamed by
`mhmoe_mm.models.released_decoder`. Three things leave no trace in weights and must be said: the
heads of the attention (64 features each in the papers), how many experts read a token, and how long
texts may be. No capacity is taken over: nothing is dropped.

Facts: the released code of https://arxiv.org/abs/2411.16205 and https://arxiv.org/abs/2404.15045.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module
from torch import Tensor, nn

from mhmoe_mm.checkpoint.imported import Imported
from mhmoe_mm.checkpoint.report import listed
from mhmoe_mm.checkpoint.weights import in_float32
from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.decoder import Decoder, RMSNorm
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.models.released_decoder import from_released_layer
from mhmoe_mm.moe.experts import GeluExperts, SwiGLUExperts
from mhmoe_mm.moe.mh_moe import MHMoE
from mhmoe_mm.moe.routers import GShardRouter, TopKRouter
from mhmoe_mm.moe.scorers import LinearScorer, XMoEScorer
from mhmoe_mm.storage.exported import class_path

PREFIX = "decoder."
HEAD_WIDTH = 64
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(.+)")
_EMBEDDING, _OUTPUT = "decoder.embed_tokens.weight", "decoder.output_projection.weight"
_NORM = "decoder.layer_norm."


def is_decoder(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a released decoder, or the experts of one."""
    return any(_LAYER.match(name) for name in names)


def in_order_of_ranks(files: Sequence[str]) -> list[str]:
    """Files whose names say their rank (`-rank-3`, `rank3`) in its order, behind those that the
    ranks share (`-shared`); others as they are given.
    """
    found = [re.search(r"rank[-_]?(\d+)|shared", Path(file).name) for file in files]
    if None in found:
        return list(files)
    ranks = [int(rank[1] or -1) for rank in found if rank is not None]
    return [file for _, file in sorted(zip(ranks, files, strict=True))]


def merged_ranks(shards: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One model of what the ranks wrote: experts behind each other, all else once.

    Args:
        shards: by their files, in the order of ranks.

    Raises:
        ValueError: two of them differ in a weight that all share, or numbers of experts have gaps.
    """
    result: dict[str, Tensor] = {}
    before: dict[str, int] = {}
    origin: dict[str, str] = {}
    for file, weights in shards.items():
        seen: dict[str, set[int]] = {}
        for name, weight in weights.items():
            if (part := _EXPERT.fullmatch(name)) is None:
                if name in result and not torch.equal(result[name], weight):
                    raise ValueError(
                        f"{name} is not the same in {origin[name]} and in {file}: these are not "
                        "the ranks of one checkpoint."
                    )
                result[name], origin[name] = weight, file
                continue
            stack, number = part[1], int(part[2])
            seen.setdefault(stack, set()).add(number)
            result[f"{stack}{before.get(stack, 0) + number}.{part[3]}"] = weight
        for stack, numbers in seen.items():
            if numbers != set(range(len(numbers))):
                raise ValueError(
                    f"The experts of {stack.rstrip('.')} in {file} are numbered "
                    f"{sorted(numbers)}, with gaps."
                )
            before[stack] = before.get(stack, 0) + len(numbers)
    return result


def from_decoder(
    given: Mapping[str, Tensor],
    source: str,
    num_heads: int | None = None,
    top_k: int | None = None,
    max_text: int = 2048,
) -> Imported:
    """A released decoder as a language model of ours, in float32.

    Args:
        given: of all ranks together.
        source: where they come from, for errors.
        num_heads: of the attention; None: heads of 64 features.
        top_k: experts that read a token; needed where there are some.
        max_text: longest text, in tokens.

    Raises:
        ValueError: a name is unknown or missing, layers differ in kind, or a number that leaves no
            trace in weights was not given.
    """
    given = in_float32(given, source)
    layers = _layers(given, source)
    dim = layers[0]["self_attn.q_proj.weight"].shape[0]
    heads = _heads(dim, num_heads, source)
    weights, names = {}, {}
    for number, state in enumerate(layers):
        prefix = f"net.layers.{number}."
        ours = from_released_layer(state, heads)
        weights |= {f"{prefix}{name}": weight for name, weight in ours.items()}
        for theirs, weight in state.items():
            # An expert's tensor is part of a stack, which has no name of its own before.
            one = theirs.partition("experts.")[2]
            name = (
                f"ffn.moe.experts.{one}"
                if one
                else next(iter(from_released_layer({theirs: weight}, heads)))
            )
            names[f"{PREFIX}layers.{number}.{theirs}"] = f"{prefix}{name}"
    weights["net.token_embedding.weight"] = given[_EMBEDDING]
    names[_EMBEDDING] = "net.token_embedding.weight"
    for kind in ("weight", "bias"):
        if f"{_NORM}{kind}" in given:
            weights[f"net.norm.{kind}"] = given[f"{_NORM}{kind}"]
            names[f"{_NORM}{kind}"] = f"net.norm.{kind}"
    notes = ["queries and keys reordered: rotary positions turn neighbours here, halves there"]
    if _OUTPUT in given:
        if not torch.equal(given[_OUTPUT], given[_EMBEDDING]):
            raise ValueError(
                f"{_OUTPUT} in {source} is not {_EMBEDDING}: decoders here share the two."
            )
        names[_OUTPUT] = "net.token_embedding.weight"
    net = _net(layers, given, dim, heads, top_k, max_text, source)
    _check(net, weights, source)
    if any("moe_layer." in name for name in names):
        notes.append("no capacity: nothing is dropped")
    return Imported(
        title=f"a decoder of MH-MoE, {len(layers)} layers",
        task="mhmoe_mm.tasks.language_modeling.LanguageModeling",
        init_args={"net": net},
        weights=weights,
        names=names,
        notes=notes,
        methods=("generate", "log_likelihood", "perplexity"),
        reads_texts=True,
        max_tokens=max_text,
    )


def _layers(given: Mapping[str, Tensor], source: str) -> list[dict[str, Tensor]]:
    """The tensors of each layer, by their names in it."""
    found: dict[int, dict[str, Tensor]] = {}
    known = {_EMBEDDING, _OUTPUT, f"{_NORM}weight", f"{_NORM}bias"}
    unknown = []
    for name, weight in given.items():
        if part := _LAYER.fullmatch(name):
            found.setdefault(int(part[1]), {})[part[2]] = weight
        elif name not in known:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{source} is a released decoder but for names that none has: "
            f"{listed(sorted(unknown))}."
        )
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"{source} has the layers {sorted(found)}, with gaps.")
    missing = [name for name in (_EMBEDDING, f"{_NORM}weight") if name not in given]
    missing += [
        f"{PREFIX}layers.{number}.{name}"
        for number, state in found.items()
        for name in ("self_attn.q_proj.weight", "self_attn_layer_norm.weight")
        if name not in state
    ]
    if missing:
        raise ValueError(f"{source} lacks {listed(missing)} of a released decoder.")
    return [found[number] for number in range(len(found))]


def _heads(dim: int, num_heads: int | None, source: str) -> int:
    if num_heads is None and dim % HEAD_WIDTH == 0:
        return dim // HEAD_WIDTH
    if num_heads is None or num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"{source} has a width of {dim}: the number of heads leaves no trace in weights, give "
            "--num-heads, a divisor of the width."
        )
    return num_heads


def _net(
    layers: list[dict[str, Tensor]],
    given: Mapping[str, Tensor],
    dim: int,
    heads: int,
    top_k: int | None,
    max_text: int,
    source: str,
) -> dict[str, Any]:
    """The decoder as a configuration describes it."""
    sparse = [
        number for number, state in enumerate(layers) if any("moe_layer." in n for n in state)
    ]
    every = sparse[0] + 1 if sparse else 2
    if sparse != [n for n in range(len(layers)) if sparse and n % every == every - 1]:
        raise ValueError(
            f"{source} has sparse layers {sparse}, counted from 0, which is not every so manieth."
        )
    first = layers[0]
    init_args: dict[str, Any] = {
        "vocab_size": given[_EMBEDDING].shape[0],
        "dim": dim,
        "num_layers": len(layers),
        "num_heads": heads,
        "max_text": max_text,
        "norm": {"class_path": class_path(nn.LayerNorm if f"{_NORM}bias" in given else RMSNorm)},
        "attention": {
            "class_path": class_path(CausalAttention),
            "init_args": {
                "bias": "self_attn.q_proj.bias" in first,
                "sub_norm": "self_attn.inner_attn_ln.weight" in first,
            },
        },
    }
    if dense := [state for state in layers if "ffn.fc1.weight" in state]:
        init_args["dense"] = _dense(dense[0])
    if sparse:
        if top_k is None:
            raise ValueError(
                f"{source} has experts: how many of them read a token leaves no trace in weights, "
                "give --top-k."
            )
        init_args["sparse"] = _sparse(layers[sparse[0]], dim, top_k, source)
        init_args["sparse_every"] = every
    return {"class_path": class_path(Decoder), "init_args": init_args}


def _dense(state: Mapping[str, Tensor]) -> dict[str, Any]:
    hidden = state["ffn.fc1.weight"].shape[0]
    if "ffn.fc3.weight" in state:
        return {"class_path": class_path(SwiGLUFFN), "init_args": {"hidden": hidden}}
    sub_norm = "ffn.ffn_layernorm.weight" in state
    init_args = {"hidden": hidden, "sub_norm": sub_norm}
    return {"class_path": class_path(GeluFFN), "init_args": init_args}


def _sparse(state: Mapping[str, Tensor], dim: int, top_k: int, source: str) -> dict[str, Any]:
    inside = {
        n.removeprefix("moe_layer."): w for n, w in state.items() if n.startswith("moe_layer.")
    }
    first_version = any(name.startswith("moe.") for name in inside)
    inside = {name.removeprefix("moe."): weight for name, weight in inside.items()}
    xmoe = "gate.wg" in inside
    gate = "gate.wg" if xmoe else "gate.wg.weight"
    width = "gate.wg_reduction.weight" if xmoe else gate
    if gate not in inside or width not in inside or "experts.0.fc1.weight" not in inside:
        raise ValueError(f"{source} has sparse layers without a gate or without experts.")
    num_experts, sub = inside[gate].shape[0], inside[width].shape[1]
    there = sum(1 for name in inside if re.fullmatch(r"experts\.\d+\.fc1\.weight", name))
    if there != num_experts:
        raise ValueError(
            f"The gates in {source} choose among {num_experts} experts, and {there} are there: "
            "give the files of all ranks."
        )
    scorer = {"class_path": class_path(XMoEScorer if xmoe else LinearScorer)}
    router: dict[str, Any] = {
        "class_path": class_path(TopKRouter),
        "init_args": {"top_k": top_k, "scorer": scorer},
    }
    if first_version and top_k == 2:
        router = {"class_path": class_path(GShardRouter), "init_args": {"scorer": scorer}}
    gated = "experts.0.fc3.weight" in inside
    experts = {
        "class_path": class_path(SwiGLUExperts if gated else GeluExperts),
        "init_args": {
            "hidden": inside["experts.0.fc1.weight"].shape[0],
            "bias": "experts.0.fc1.bias" in inside,
            "sub_norm": "experts.0.ffn_layernorm.weight" in inside,
        },
    }
    maps = int("multi_heads.weight" in inside)
    return {
        "class_path": class_path(MHMoE),
        "init_args": {
            "num_heads": dim // max(sub, 1),
            "num_experts": num_experts,
            "router": router,
            "experts": experts,
            "head_layers": maps,
            "merge_layers": maps,
        },
    }


def _check(net: dict[str, Any], weights: Mapping[str, Tensor], source: str) -> None:
    """Compare with a network of this configuration, which takes no memory."""
    with torch.device("meta"):
        built = instantiate_module(
            nn.Module, {"_class_path": net["class_path"], **net["init_args"]}
        )
    wanted = {f"net.{name}": weight.shape for name, weight in built.state_dict().items()}
    there = {name: weight.shape for name, weight in weights.items()}
    if differing := sorted({name for name, _ in wanted.items() ^ there.items()}):
        name = differing[0]
        raise ValueError(
            f"{source} has {name}, as it is called here, of the shape {_shown(there.get(name))}; "
            f"beside the others it should be {_shown(wanted.get(name))}."
        )


def _shown(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
