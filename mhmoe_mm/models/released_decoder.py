"""The released decoder layers of MH-MoE: their names for the weights, and their settings as ours.

A released layer is pre-norm with RMSNorm, rotary positions and no biases, and dense or sparse; its
sparse part is `moe/released.py`'s. One thing is arranged otherwise there: rotary positions turn
feature i of a head together with feature i + width / 2, and ours neighbours, 2i and 2i + 1. So rows
of the maps to queries and keys are put in another order, which changes no score.

Facts: the released code of https://arxiv.org/abs/2411.16205, whose rotary embedding is LLaMA's.
"""

from collections.abc import Mapping

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.models.decoder import DecoderLayer, RMSNorm
from mhmoe_mm.models.ffn import SwiGLUFFN
from mhmoe_mm.moe.released import ReleasedLayer, from_released

_SPARSE = "moe_layer."
_MODULES = {
    "self_attn_layer_norm": "attention_norm",
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.inner_attn_ln": "attention.sub_norm",
    "self_attn.out_proj": "attention.out",
    "final_layer_norm": "ffn_norm",
    "ffn.fc1": "ffn.up",
    "ffn.fc3": "ffn.gate",  # goes through SiLU
    "ffn.ffn_layernorm": "ffn.sub_norm",
    "ffn.fc2": "ffn.down",
}
_TURNED = ("self_attn.q_proj", "self_attn.k_proj")


def from_released_layer(state: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """A released layer's tensors under the names of our `DecoderLayer`.

    Args:
        state: with the keys of one layer, without its prefix `decoder.layers.<i>.`.
        num_heads: heads of the attention.

    Raises:
        ValueError: a key that no released layer has, maps that cannot be cut into so many heads, or
            experts with gaps.
    """
    ours: dict[str, Tensor] = {}
    sparse = {k.removeprefix(_SPARSE): v for k, v in state.items() if k.startswith(_SPARSE)}
    for name, tensor in state.items():
        if name.startswith(_SPARSE):
            continue
        module, _, kind = name.rpartition(".")
        if module not in _MODULES or kind not in ("weight", "bias"):
            raise ValueError(f"'{name}' is not a tensor of a released decoder layer.")
        if module in _TURNED:
            tensor = _neighbours(tensor, num_heads)
        ours[f"{_MODULES[module]}.{kind}"] = tensor
    return ours | {f"ffn.{name}": tensor for name, tensor in from_released(sparse).items()}


def released_layer(
    dim: int, num_heads: int, sparse: ReleasedLayer | None = None, hidden: int | None = None
) -> DecoderLayer:
    """Our layer with a released one's settings, its weights fresh.

    Args:
        dim, num_heads: width of a token, heads of the attention.
        sparse: settings of the sparse part; None: the layer is dense.
        hidden: inner width of the dense net.
    """
    return DecoderLayer(
        RMSNorm(dim),
        CausalAttention(dim, num_heads),
        RMSNorm(dim),
        SwiGLUFFN(dim, hidden) if sparse is None else sparse.build(),
    )


def _neighbours(rows: Float[Tensor, "dim *dim_in"], num_heads: int) -> Float[Tensor, "dim *dim_in"]:
    """Rows of features that are turned together, i and i + width / 2 of a head, beside each other.

    Of a map's weight or bias.
    """
    if len(rows) % (2 * num_heads):
        raise ValueError(
            f"A map to {len(rows)} features cannot be cut into num_heads={num_heads} heads of an "
            "even number of features."
        )
    return rearrange(rows, "(h two half) ... -> (h half two) ...", h=num_heads, two=2)
