"""The image tower of a CLIP checkpoint as a teacher: that of BEiT v2.

Source: https://arxiv.org/abs/2103.00020; what BEiT v2 reads is every patch after the last norm and
the projection that CLIP trains for the class token alone (https://arxiv.org/abs/2208.06366).
"""

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from mhmoe_mm.models.attention import check_heads
from mhmoe_mm.models.pixel_statistics import STATISTICS
from mhmoe_mm.teachers.base import Teacher

HEAD_WIDTH = 64
"""Of the attention in CLIP's own towers."""
_ONCE = {
    "vision_model.embeddings.class_embedding": "class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "positional_embedding",
}
_RENAMED = {
    "vision_model.pre_layrnorm": "ln_pre",  # spelled so
    "vision_model.post_layernorm": "ln_post",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


class ClipTeacher(Teacher):
    """What CLIP's image tower says of every patch, in the space that it shares with texts.

    Its sizes are read from the weights.

    Args:
        weights: a safetensors file with the names of transformers (`vision_model.`), or of OpenAI
            and open_clip (`visual.`); texts in it are left out.
        quick_gelu: whether it was trained with OpenAI's approximation of GELU.
        num_heads: of its attention; None: one for every 64 features, as in CLIP's own towers.
    """

    mean, std = STATISTICS["clip"]

    def __init__(self, weights: str, quick_gelu: bool = True, num_heads: int | None = None):
        super().__init__()
        self.weights, self.quick_gelu, self.num_heads = weights, quick_gelu, num_heads

    def load(self) -> None:
        try:
            given = openai_names(load_file(self.weights))
            width, _, patch, _ = given["visual.conv1.weight"].shape
            positions = len(given["visual.positional_embedding"])
            self.feature_dim = given["visual.proj"].shape[1]
        except (OSError, SafetensorError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ValueError(
                f"The teacher cannot be read from '{self.weights}' ({reason}): name a safetensors "
                "file of CLIP's weights."
            ) from error
        except KeyError as error:
            raise ValueError(
                f"{self.weights} is no CLIP checkpoint with a vision transformer: it lacks {error}."
            ) from error
        self.grid = round((positions - 1) ** 0.5)
        self.image_size = self.grid * patch
        heads = self.num_heads or width // HEAD_WIDTH or 1
        check_heads(width, heads)
        net = VisionTransformer(
            img_size=self.image_size,
            patch_size=patch,
            num_classes=self.feature_dim,
            embed_dim=width,
            depth=len({name.split(".")[3] for name in given if ".resblocks." in name}),
            num_heads=heads,
            mlp_ratio=len(given["visual.transformer.resblocks.0.mlp.c_fc.weight"]) / width,
            pre_norm=True,
            norm_layer=_clip_norm,  # pyright: ignore[reportArgumentType]
            act_layer=QuickGELU if self.quick_gelu else nn.GELU,
        )
        try:
            net.load_state_dict(checkpoint_filter_fn(given, net))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"The tower in {self.weights} is not CLIP's: {reason}") from error
        self.net = net.requires_grad_(False).eval()

    def features(
        self, image: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch patches features"]:
        return self.net.head(self.net.forward_features(image)[:, 1:])


def openai_names(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image tower's weights, in float32, under OpenAI's names."""
    found = {name: w.float() for name, w in given.items() if name.startswith("visual.")}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weight in given.items():
        weight = weight.float()
        if name == "visual_projection.weight":
            found["visual.proj"] = weight.T
        elif name in _ONCE:
            found[f"visual.{_ONCE[name]}"] = weight
        elif match := re.fullmatch(_LAYER.pattern + r"self_attn\.([qkv])_proj\.(\w+)", name):
            place = f"visual.transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            parts.setdefault(place, {})[match[2]] = weight
        elif name.startswith("vision_model.") and not name.endswith("position_ids"):
            for theirs, ours in _RENAMED.items():
                name = name.replace(theirs, ours)
            found["visual." + _LAYER.sub(r"transformer.resblocks.\1.", name)] = weight
    for place, of_kind in parts.items():
        found[place] = torch.cat([of_kind[kind] for kind in "qkv"])
    return found


def _clip_norm(dim: int, **options) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-5, **options)
