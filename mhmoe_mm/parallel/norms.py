"""The norm of gradients that are spread over ranks, each in its own way.

torch's `clip_grad_norm_` takes the gradients of one device mesh only; with expert parallelism there
are two, and scalars that every rank keeps.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

MeshPart = tuple[dist.ProcessGroup, ...]
"""The groups of ranks that a gradient is sharded over."""


def grad_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """The 2-norm of all gradients, in float32, the same on every rank; 0 where there are none.

    Ranks that share a gradient out add their parts up, those that hold copies count it once. All
    ranks must ask together.
    """
    spread: dict[MeshPart, list[Tensor]] = {}
    for param in parameters:
        if param.grad is not None:
            spread.setdefault(_shared_out(param.grad), []).append(local(param.grad))
    if not spread:
        return torch.zeros(())
    total = torch.zeros((), device=next(iter(spread.values()))[0].device)
    # Every rank has the same parameters, so they all meet these groups in the same order.
    for groups, grads in spread.items():
        norms = torch._foreach_norm(grads, dtype=torch.float32)
        part = torch.stack(norms).square().sum()
        for group in groups:
            dist.all_reduce(part, group=group)
        total = total + part.to(total.device)
    return total.sqrt()


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scale all gradients so that their norm is at most `max_norm`; the norm that they had."""
    parameters = list(parameters)
    norm = grad_norm(parameters)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grads in _local_grads(parameters):
        torch._foreach_mul_(grads, factor.to(grads[0].device))
    return norm


@torch.no_grad()
def clip_grad_value(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Put every number of every gradient between `-limit` and `limit`."""
    for grads in _local_grads(parameters):
        torch._foreach_clamp_min_(grads, -limit)
        torch._foreach_clamp_max_(grads, limit)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local_grads(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    """What this rank holds of all gradients: a list for each device that some lie on."""
    found: dict[torch.device, list[Tensor]] = {}
    for param in parameters:
        if param.grad is not None:
            found.setdefault(param.grad.device, []).append(local(param.grad))
    return list(found.values())


def _shared_out(grad: Tensor) -> MeshPart:
    if not isinstance(grad, DTensor):
        return ()
    sharded = [n for n, place in enumerate(grad.placements) if not place.is_replicate()]
    if any(grad.placements[n].is_partial() for n in sharded):
        raise ValueError("A gradient is not summed over its ranks yet: it has no norm.")
    return tuple(grad.device_mesh.get_group(n) for n in sharded)
