"""Image transformers of timm as the image side of a multiway encoder: a start, no copy.

    patch_embed.proj, cls_token, pos_embed    image_embedding
    blocks.i.norm1, attn.qkv, attn.proj       blocks.i.attention_norm, attention
    blocks.i.norm2, mlp.fc1, mlp.fc2          blocks.i.ffn_norm, ffn
    norm                                      norm

each in the branch that image tokens pass: `image`, or `shared` where there is one for all. A scale
behind a summand (`ls1`, `ls2`) is multiplied into the map before it, which changes nothing. Without
sub-norms the image path is then the transformer's own (its LayerNorms add 1e-6 where ours add
1e-5); a network's sub-norms have no counterpart and start fresh.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.block import Block
from mhmoe_mm.models.branches import Multiway, MultiwayFFN
from mhmoe_mm.models.embeddings import UNUSED_ROWS

_ONCE = {
    "patch_embed.proj.weight": "image_embedding.patch.weight",
    "patch_embed.proj.bias": "image_embedding.patch.bias",
    "cls_token": "image_embedding.cls",
}
_SUMMANDS = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}
"""The maps whose output a scale may multiply, and its name."""
_OLD_SCALES = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}


def is_vit(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of an image transformer of timm."""
    return "patch_embed.proj.weight" in names and any(n.startswith("blocks.0.attn.") for n in names)


def as_image_expert(given: Mapping[str, Tensor], net: BEiT3, source: str) -> dict[str, Tensor]:
    """The transformer's weights under our names with `net.` in front; what has no counterpart keeps
    its name.

    Image positions stay those of its own grid, behind two rows of the network that nothing reads.

    Args:
        given: by timm's names.
        net: that is to start from them.
        source: where they come from, for errors.

    Raises:
        ValueError: the transformer has another width or other patches.
    """
    rest, dim, inside = dict(given), net.dim, dict(net.named_parameters())
    patch, own = rest["patch_embed.proj.weight"].shape, net.image_embedding.patch.weight.shape
    if patch != own:
        raise ValueError(
            f"The image transformer in {source} is {patch[0]} wide and reads patches of "
            f"{patch[-1]} pixels in {patch[1]} colours; the network is {own[0]} wide and reads "
            f"patches of {own[-1]} in {own[1]}: choose one of the same width and patches."
        )
    ours = {name: rest.pop(theirs) for theirs, name in _ONCE.items() if theirs in rest}
    if "pos_embed" in rest:
        ours["image_embedding.position"] = _positions(rest.pop("pos_embed"), net, source)
    for layer, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        pre, to = f"blocks.{layer}.", f"blocks.{layer}."
        attention = _branch(block.attention.query)
        ffn = _branch(block.ffn)
        _take_qkv(rest, ours, pre, to, attention, dim)
        _scale(rest, pre)
        modules = {
            "norm1": f"attention_norm.{_branch(block.attention_norm)}",
            "attn.proj": f"attention.out.{attention}",
            "norm2": f"ffn_norm.{_branch(block.ffn_norm)}",
            "mlp.fc1": f"ffn.{ffn}.up",
            "mlp.fc2": f"ffn.{ffn}.down",
        }
        if f"{to}ffn.{ffn}.up.weight" not in inside:
            del modules["mlp.fc1"], modules["mlp.fc2"]  # a sparse layer: its experts start fresh
        _take(rest, ours, {f"{pre}{theirs}": f"{to}{name}" for theirs, name in modules.items()})
    if net.norm is not None:
        _take(rest, ours, {"norm": f"norm.{_branch(net.norm)}"})
    return {f"net.{name}": weight for name, weight in ours.items()} | rest


def _branch(place: Multiway | MultiwayFFN) -> str:
    """The branch that an image alone passes."""
    ((branch, _),) = place.route.parts(1, 1)
    return branch


def _take(rest: dict[str, Tensor], ours: dict[str, Tensor], modules: Mapping[str, str]) -> None:
    for theirs, name in modules.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in rest:
                ours[f"{name}.{kind}"] = rest.pop(f"{theirs}.{kind}")


def _take_qkv(
    rest: dict[str, Tensor], ours: dict[str, Tensor], pre: str, to: str, branch: str, dim: int
) -> None:
    """One map to queries, keys and values as three; a missing bias is zero."""
    weight = rest.pop(f"{pre}attn.qkv.weight", None)
    if weight is None:
        return
    bias = rest.pop(f"{pre}attn.qkv.bias", None)
    if bias is None:  # BEiT's keys have none
        zero = torch.zeros(dim)
        first, last = (rest.pop(f"{pre}attn.{name}_bias", zero) for name in "qv")
        bias = torch.cat([first, zero, last])
    names = ("query", "key", "value")
    for name, part, shift in zip(names, weight.chunk(3), bias.chunk(3), strict=True):
        ours[f"{to}attention.{name}.{branch}.weight"] = part
        ours[f"{to}attention.{name}.{branch}.bias"] = shift


def _scale(rest: dict[str, Tensor], pre: str) -> None:
    """Multiply scales of summands into the maps before them."""
    for module, name in _SUMMANDS.items():
        gamma = rest.pop(f"{pre}{name}", None)
        if gamma is None:
            gamma = rest.pop(f"{pre}{_OLD_SCALES[name]}", None)
        if gamma is not None:
            rest[f"{pre}{module}.weight"] = rest[f"{pre}{module}.weight"] * gamma[:, None]
            if f"{pre}{module}.bias" in rest:
                rest[f"{pre}{module}.bias"] = rest[f"{pre}{module}.bias"] * gamma


def _positions(table: Tensor, net: BEiT3, source: str) -> Tensor:
    """(1, class token and patches, dim) or without the class token, as a table of ours."""
    rows = table[0].float()
    side = round(len(rows) ** 0.5)
    if side**2 == len(rows):  # the class token has no position
        rows = torch.cat([rows.new_zeros(1, rows.shape[1]), rows])
    elif round((len(rows) - 1) ** 0.5) ** 2 != len(rows) - 1:
        raise ValueError(
            f"pos_embed in {source} has {len(rows)} rows, which is no square grid of patches with "
            "or without a class token: transformers with further tokens are not taken."
        )
    unused = net.image_embedding.position.detach()[:UNUSED_ROWS]
    return torch.cat([unused.to(rows), rows])
