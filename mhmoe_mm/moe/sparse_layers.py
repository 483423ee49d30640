"""The sparse layers of a network: where they are and what they are."""

from typing import NamedTuple

from torch import nn

from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE


class Description(NamedTuple):
    """What a sparse layer is."""

    name: str
    block: int
    branch: str
    kind: str
    num_experts: int
    num_heads: int
    router: str


def sparse_layers(net: nn.Module) -> dict[str, SparseMoE | MHMoE]:
    """The sparse layers of a network by path; those inside another one are part of it."""
    found: dict[str, SparseMoE | MHMoE] = {}
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, SparseMoE | MHMoE) and not inside:
            found[name] = module
    return found


def described(net: nn.Module) -> list[Description]:
    """The sparse layers of a network, in order."""
    return [_description(name, layer) for name, layer in sparse_layers(net).items()]


def _description(name: str, layer: SparseMoE | MHMoE) -> Description:
    parts = name.split(".")
    block = next((int(part) for part in parts if part.isdigit()), 0)
    branch = "" if parts[-1] == "ffn" else parts[-1]
    heads = layer.num_heads if isinstance(layer, MHMoE) else 1
    router = layer.router
    return Description(
        name, block, branch, type(layer).__name__, router.num_experts, heads, type(router).__name__
    )
