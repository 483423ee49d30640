"""Refusals of routers through which a token would learn of others that it must not know of.

`check_looks_back`: no token's experts depend on tokens after it, which is enough for training.
`check_single_tokens`: nor on those before it, so what was read stays as it is when more is read.
"""

from torch import nn

from mhmoe_mm.moe.routing import Router


def check_looks_back(net: nn.Module) -> None:
    """Refuse a network in which what experts read a token depends on tokens after it.

    Raises:
        ValueError: such a router, by name.
    """
    for name, router in _routers(net):
        if not router.causal:
            raise ValueError(
                f"A causal decoder cannot use {name}, a {type(router).__name__} that looks at "
                "tokens that are yet to come (expert choice, or a capacity that later tokens "
                "compete for): use a router of single tokens without a capacity, such as "
                "TopKRouter."
            )


def check_single_tokens(net: nn.Module, refused: str) -> None:
    """Refuse a network whose routers let a token's experts depend on any other token.

    Args:
        net: the network.
        refused: what cannot be done with such a network, as the start of a sentence.

    Raises:
        ValueError: an expert-choice router, or one with a capacity, by name.
    """
    for name, router in _routers(net):
        limited = getattr(router, "capacity", None) is not None
        if limited or not router.causal:
            why = "has a capacity" if limited else "is not causal"
            raise ValueError(
                f"{refused}: {name}, a {type(router).__name__}, {why}, so a token's experts depend "
                "on other tokens, also on those that are not yet written. Use a router of single "
                "tokens without a capacity, such as TopKRouter."
            )


def _routers(net: nn.Module) -> list[tuple[str, Router]]:
    return [(name, module) for name, module in net.named_modules() if isinstance(module, Router)]
