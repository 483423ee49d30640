"""Networks of which no process ever holds more than a block.

A deferred network is built twice. The first time every block gives its memory back as soon as it is
finished, so that it has shapes only; then it is sharded, which takes none. The second time, from
the same random numbers, every block hands its weights to the shares of it that lie on this rank.
The network comes out as if it had been built at once, to the bit.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from mhmoe_mm.models.parts import each_part

T = TypeVar("T", bound=nn.Module)
_RECIPE = "_recipe"


class _Recipe(NamedTuple):
    """How a network is built again."""

    make: Callable[[], nn.Module]
    random: Tensor
    """The state of the generator that its weights are drawn from."""


def deferred(kind: type[T], *args: Any, **options: Any) -> T:
    """A network whose blocks have shapes and no memory, until `fill`.

    Args:
        kind: its class; hands its blocks over with `models.parts.part`.
        args, options: of the class.

    Raises:
        ValueError: something else fills the blocks once all are there.
    """
    if options.get("start") is not None:
        raise ValueError(
            f"{type(options['start']).__name__} fills a network that is there as a whole, and "
            "`deferred` never has it so: leave one of them out."
        )
    random = torch.get_rng_state()
    with each_part(_forget):
        net = kind(*args, **options)
    setattr(net, _RECIPE, _Recipe(lambda: kind(*args, **options), random))
    return net


def is_deferred(net: nn.Module) -> bool:
    """Whether the network's blocks have no memory yet."""
    return hasattr(net, _RECIPE)


def fill(net: nn.Module, device: torch.device) -> None:
    """Give the blocks of a deferred network, sharded by now, their memory and their weights."""
    recipe: _Recipe = getattr(net, _RECIPE)
    delattr(net, _RECIPE)
    places = _blocks(net)
    whole = StateDictOptions(full_state_dict=True)

    def move(built: nn.Module) -> None:
        place = next(places).to_empty(device=device)
        set_model_state_dict(place, built.state_dict(), options=whole)
        for name, buffer in built.named_buffers():
            place.get_buffer(name).copy_(buffer)
        _forget(built)

    with torch.random.fork_rng(devices=[]), each_part(move):
        torch.set_rng_state(recipe.random)
        recipe.make()


def _forget(block: nn.Module) -> None:
    """Keeps buffers and scalars, which are not sharded and have hooks of their own."""
    for module in block.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            if param.ndim:
                shape = nn.Parameter(param.detach().to("meta"), param.requires_grad)
                module.register_parameter(name, shape)


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """Those that were handed over, in that order: they alone have no memory."""
    for child in net.children():
        if isinstance(child, nn.ModuleList) and any(p.is_meta for p in child.parameters()):
            yield from child
