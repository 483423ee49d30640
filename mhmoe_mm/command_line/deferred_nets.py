"""Networks of a command line whose strategy defers them."""

from collections.abc import Callable
from typing import Any

from torch import nn

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.parallel.deferred import deferred

Maker = tuple[Callable[..., Any], type, bool]


def net_makers(strategy: Any) -> list[Maker]:
    """What makes the networks, as jsonargparse takes it: by class, subclasses included; nothing
    where the strategy, as the configuration has it, does not defer them.
    """
    given = getattr(strategy, "init_args", None) or {}
    return [(_made, kind, True) for kind in (BEiT3, Decoder)] if given.get("deferred") else []


def _made(
    kind: type[nn.Module], *args: Any, applied_instantiation_links: Any = None, **options: Any
) -> nn.Module:
    return deferred(kind, *args, **options)
