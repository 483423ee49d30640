"""What a decoder costs, part by part: parameters, and multiply-adds per token."""

from typing import NamedTuple

from torch import nn

from mhmoe_mm.models.decoder import Decoder, DecoderLayer
from mhmoe_mm.models.net_cost import feed_forward_cost, matrix_entries, num_parameters


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
    positions = num_parameters(net.positions)
    costs = {"embedding": Cost(vocabulary + positions, vocabulary + positions, 0.0)}
    for number, layer in enumerate(net.layers):
        assert isinstance(layer, DecoderLayer)
        found = {
            "attention": _attention_cost(layer.attention, context, net.dim),
            "ffn": _ffn_cost(layer.ffn),
        }
        for name, part in found.items():
            norm = num_parameters(layer.get_submodule(f"{name}_norm"))
            costs[f"layers.{number}.{name}"] = Cost(
                part.parameters + norm, part.active_parameters + norm, part.macs
            )
    costs["output"] = Cost(num_parameters(net.norm), num_parameters(net.norm), float(vocabulary))
    return costs


def decoder_cost(net: Decoder, context: int) -> Cost:
    """The cost of all parts together; arguments as in `part_costs`."""
    parts = part_costs(net, context).values()
    return Cost(
        sum(part.parameters for part in parts),
        sum(part.active_parameters for part in parts),
        sum(part.macs for part in parts),
    )


def _attention_cost(module: nn.Module, context: int, dim: int) -> Cost:
    total = num_parameters(module)
    return Cost(total, total, matrix_entries(module) + 2 * context * dim)


def _ffn_cost(module: nn.Module) -> Cost:
    total, found = num_parameters(module), feed_forward_cost(module)
    return Cost(total, total - found.idle, found.macs + found.router_macs)
