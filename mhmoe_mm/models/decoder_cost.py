"""What a decoder costs, part by part: parameters, and multiply-adds per token."""

from typing import NamedTuple

from torch import nn

from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.moe.layer_shape import shape_of
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE


class Cost(NamedTuple):
    """The cost of a network or of a part of it."""

    parameters: int
    active_parameters: float
    """Without experts that a token, on average, does not go to."""
    macs: float
    """Multiply-adds per token of matrix products, routers' among them."""


def part_costs(net: Decoder, context: int) -> dict[str, Cost]:
    """The cost of every part, in the order in which tokens pass them.

    Parts are `embedding` (with learned positions), `layers.0.attention`, `layers.0.ffn` and so on,
    each with the norm before it, and `output`: the last norm, and the product with the embeddings,
    which are counted there no second time.

    Args:
        net: may live on the meta device.
        context: tokens of a text. A token is taken to look at all of them, as counters of kernels
            do, although on average it looks at half.
    """
    vocabulary = net.vocab_size * net.dim
    positions = _numel(net.positions)
    costs = {"embedding": Cost(vocabulary + positions, vocabulary + positions, 0.0)}
    for number, layer in enumerate(net.layers):
        for name in ("attention", "ffn"):
            part = layer.get_submodule(name)
            found = _cost(part)
            norm = _numel(layer.get_submodule(f"{name}_norm"))
            looking = 2 * context * net.dim if name == "attention" else 0
            costs[f"layers.{number}.{name}"] = Cost(
                found.parameters + norm, found.active_parameters + norm, found.macs + looking
            )
    costs["output"] = Cost(_numel(net.norm), _numel(net.norm), float(vocabulary))
    return costs


def decoder_cost(net: Decoder, context: int) -> Cost:
    """The cost of all parts together; arguments as in `part_costs`."""
    parts = part_costs(net, context).values()
    return Cost(
        sum(part.parameters for part in parts),
        sum(part.active_parameters for part in parts),
        sum(part.macs for part in parts),
    )


def _cost(module: nn.Module) -> Cost:
    if not isinstance(module, SparseMoE | MHMoE):
        matrices = sum(p.numel() for p in module.parameters() if p.ndim == 2)
        return Cost(_numel(module), _numel(module), matrices)
    shape = shape_of(module)
    shared = 0.0 if module.shared is None else _cost(module.shared).macs
    reached = min(shape.num_heads * shape.top_k / shape.num_experts, 1.0)
    idle = (1 - reached) * shape.expert_parameters
    total = _numel(module)
    return Cost(total, total - idle, shape.macs + shared)


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
