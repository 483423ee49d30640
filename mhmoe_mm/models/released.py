"""How the released BEiT-3 models name their weights against a dense `ReleasedLayout` and tasks.

Names and one resize only: files and the backbone's prefix (`beit3.`) are the importer's business.
Shapes are the same on both sides.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.models.embeddings import UNUSED_ROWS

_ONCE = {
    "text_embed.weight": "text_embedding.token.weight",
    "vision_embed.mask_token": "image_embedding.mask",
    "vision_embed.cls_token": "image_embedding.cls",
    "vision_embed.proj.weight": "image_embedding.patch.weight",
    "vision_embed.proj.bias": "image_embedding.patch.bias",
    "encoder.embed_positions.A.weight": "image_embedding.position",
    "encoder.embed_positions.B.weight": "text_embedding.position",
}
_BRANCHES = {"A": "image", "B": "text"}
_PER_BRANCH = {
    "self_attn.q_proj.{}": "attention.query.{}",
    "self_attn.k_proj.{}": "attention.key.{}",
    "self_attn.v_proj.{}": "attention.value.{}",
    "self_attn.out_proj.{}": "attention.out.{}",
    "self_attn.inner_attn_ln.{}": "attention.sub_norm.{}",
    "self_attn_layer_norm.{}": "attention_norm.{}",
    "final_layer_norm.{}": "ffn_norm.{}",
    "ffn.{}.fc1": "ffn.{}.up",
    "ffn.{}.ffn_layernorm": "ffn.{}.sub_norm",
    "ffn.{}.fc2": "ffn.{}.down",
}

_HEADS = {
    "pretraining": {"mlm_head": "text_head.out", "mim_head": "image_head.out"},
    "vqa": {
        "pooler.norm": "pooler.norm",
        "pooler.dense": "pooler.dense",
        "head.0": "head.dense",
        "head.1": "head.norm",
        "head.3": "head.out",
    },
    "nlvr2": {
        "head.norm1": "head.norm",
        "head.dense1": "head.dense",
        "head.norm2": "head.second_norm",
        "head.dense2": "head.out",
    },
    "captioning": {"mlm_head": "text_head.out"},
    "imagenet": {"fc_norm": "head.norm", "head": "head.out"},
}
_RETRIEVAL = {
    "logit_scale": "logit_scale",
    "vision_head.weight": "vision_head.out.weight",
    "language_head.weight": "language_head.out.weight",
}

MODELS = (*_HEADS, "retrieval")
"""The kinds of released models, by what they were made for."""


def our_head_names(model: str) -> dict[str, str]:
    """From every released name outside the backbone to our task's name of the same weight.

    `model` is one of `MODELS`.
    """
    if model == "retrieval":
        return dict(_RETRIEVAL)
    if model not in _HEADS:
        raise ValueError(f"No released model is called '{model}': choose from {', '.join(MODELS)}.")
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in _HEADS[model].items()
        for kind in ("weight", "bias")
    }


def our_names(num_layers: int, normalize_output: bool = True) -> dict[str, str]:
    """From every released backbone name to our name of the same weight; one to one."""
    modules = {
        f"encoder.layers.{layer}.{theirs}": f"blocks.{layer}.{ours}"
        for layer in range(num_layers)
        for theirs, ours in _PER_BRANCH.items()
    }
    if normalize_output:
        modules["encoder.layer_norm.{}"] = "norm.{}"
    return _ONCE | {
        f"{theirs.format(letter)}.{kind}": f"{ours.format(branch)}.{kind}"
        for theirs, ours in modules.items()
        for letter, branch in _BRANCHES.items()
        for kind in ("weight", "bias")
    }


def resize_positions(
    table: Float[Tensor, "rows dim"], patches_per_side: int
) -> Float[Tensor, "new_rows dim"]:
    """An image position table for another square grid of patches, in float32.

    The unused rows and the class token's stay; the patches' are interpolated bicubically, as the
    released code does.
    """
    table = table.float()
    first, patches = table[: UNUSED_ROWS + 1], table[UNUSED_ROWS + 1 :]
    side = round(len(patches) ** 0.5)
    if side**2 != len(patches):
        raise ValueError(
            f"A position table of {len(table)} rows leaves {len(patches)} for patches, "
            "which is not a square grid."
        )
    grid = rearrange(patches, "(h w) d -> 1 d h w", h=side)
    grid = F.interpolate(
        grid, (patches_per_side, patches_per_side), mode="bicubic", align_corners=False
    )
    return torch.cat([first, rearrange(grid, "1 d h w -> (h w) d")])
