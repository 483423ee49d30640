"""The released image tokenizers of BEiT v2 as ours: names alone, `mhmoe_mm.models.vqkd` has them.

What only their training needed is left out: the teacher, the loss, statistics of the codebook.
Facts: the code released with https://arxiv.org/abs/2208.06366.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mhmoe_mm.checkpoint.imported import Imported
from mhmoe_mm.checkpoint.report import listed
from mhmoe_mm.checkpoint.weights import in_float32
from mhmoe_mm.models.vqkd import VQKD
from mhmoe_mm.storage.exported import class_path

HEAD_WIDTH = 64
LEFT_OUT = (
    "loss",
    "teacher",
    "scaling",
    "quantize.embedding.cluster_size",
    "quantize.embedding.embed_avg",
)
"""Begins the names of what is of no use any more."""
_RENAMED = {
    "encode_head.": "encode_task_layer.",
    "decode_head.": "decode_task_layer.",
    "codebook.code": "quantize.embedding.weight",
    "codebook.started": "quantize.embedding.initted",
    "codebook.recent": "quantize.cluster_size",
}
_CODES = "quantize.embedding.weight"
_STARTED = "codebook.started"
"""Whether codes were found; no weight, and a file may lack it."""
_RECENT = "codebook.recent"
"""How many patches chose each code of late; likewise. Without it, one each: none is lost."""


def is_vqkd(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a released image tokenizer."""
    return _CODES in names and any(name.startswith("encode_task_layer.") for name in names)


def from_vqkd(given: Mapping[str, Tensor], source: str, num_heads: int | None = None) -> Imported:
    """A released image tokenizer as ours, in float32.

    Args:
        given: by the released names.
        source: where they come from, for errors.
        num_heads: of the attention; None: heads of 64 features.

    Raises:
        ValueError: a name is unknown or missing, or a shape is not that of the others.
    """
    kept = {name: weight for name, weight in given.items() if not name.startswith(LEFT_OUT)}
    sizes = _sizes(kept, num_heads, source)
    with torch.device("meta"):
        wanted = VQKD(**sizes).state_dict()
    names = {_theirs(ours): ours for ours in wanted}
    if unknown := sorted(kept.keys() - names.keys()):
        raise ValueError(
            f"{source} is a released image tokenizer but for names that none has: "
            f"{listed(unknown)}."
        )
    kept.setdefault(_theirs(_RECENT), torch.ones(sizes["num_codes"]))
    if missing := [n for n, ours in names.items() if n not in kept and ours != _STARTED]:
        raise ValueError(f"{source} lacks {listed(sorted(missing))} of a released image tokenizer.")
    values = in_float32({n: w for n, w in kept.items() if names[n] != _STARTED}, source)
    weights = {}
    for theirs, ours in names.items():
        like = wanted[ours]
        if ours == _STARTED:  # the codes of a file that is to be used were found
            weights[f"net.{ours}"] = torch.ones(like.shape, dtype=like.dtype)
            continue
        value = values[theirs]
        if value.shape != like.shape:
            raise ValueError(
                f"{theirs} in {source} has the shape {tuple(value.shape)}; beside the others it "
                f"should be {tuple(like.shape)}."
            )
        weights[f"net.{ours}"] = value
    left_out = sorted(name for name in given if name.startswith(LEFT_OUT))
    return Imported(
        title=f"an image tokenizer of BEiT v2, {sizes['num_codes']} codes",
        task="mhmoe_mm.tasks.image_tokenizer.ImageTokenizer",
        init_args={"net": {"class_path": class_path(VQKD), "init_args": sizes}},
        weights=weights,
        names={theirs: f"net.{names[theirs]}" for theirs in kept if theirs in given},
        notes=[f"left out, as only training needs them: {listed(left_out)}"],
        methods=(),
        reads_texts=False,
        max_tokens=0,
    )


def _theirs(ours: str) -> str:
    for start, theirs in _RENAMED.items():
        if ours.startswith(start):
            return theirs + ours.removeprefix(start)
    return ours


def _sizes(given: Mapping[str, Tensor], num_heads: int | None, source: str) -> dict[str, Any]:
    """The arguments of `VQKD`."""

    def shape(name: str, axes: int) -> torch.Size:
        weight = given.get(name)
        if weight is None or weight.ndim != axes:
            kind = "missing" if weight is None else f"of the shape {tuple(weight.shape)}"
            raise ValueError(f"{name} is {kind} in {source}, an image tokenizer otherwise.")
        return weight.shape

    def layers(part: str) -> int:
        begin = f"{part}.blocks."
        return len({name.split(".")[2] for name in given if name.startswith(begin)})

    dim, _, patch, _ = shape("encoder.patch_embed.proj.weight", 4)
    side = round((shape("encoder.pos_embed", 3)[1] - 1) ** 0.5)
    num_codes, code_dim = shape(_CODES, 2)
    if num_heads is None and dim % HEAD_WIDTH == 0:
        num_heads = dim // HEAD_WIDTH
    if num_heads is None or num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"{source} has a width of {dim}: the number of heads leaves no trace in weights, give "
            "--num-heads, a divisor of the width."
        )
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "dim": dim,
        "num_heads": num_heads,
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "num_codes": num_codes,
        "code_dim": code_dim,
        "feature_dim": shape("decode_task_layer.2.weight", 2)[0],
    }
