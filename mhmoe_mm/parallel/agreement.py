"""What ranks must agree on before they go on."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule


def any_rank(here: bool, device: torch.device) -> bool:
    """Whether it is so on any rank; all must ask together. Waits for the device."""
    if not (dist.is_available() and dist.is_initialized()):
        return here
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def is_shared_out(module: torch.nn.Module) -> bool:
    """Whether every rank holds a part of the module, so that all must run it equally often."""
    return isinstance(module, FSDPModule)
