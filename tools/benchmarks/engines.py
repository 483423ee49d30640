"""What is measured: our layer, the plain loop, the dense net of equal multiply-adds, peers."""

import torch
from torch import nn

from mhmoe_mm.moe import Backend, GroupedBackend, LoopBackend, MHMoE, SparseMoE
from tools.benchmarks.cases import Case
from tools.benchmarks.peers import peer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DENSE, OURS, LOOP = "dense", "ours", "loop"


def made(name: str, case: Case, block: int | None) -> nn.Module:
    """The layer of an engine, by its name; `block` is our own one's, None its usual.

    Raises:
        Unfit: the case is not for this peer.
    """
    if name == DENSE:
        return case.dense()
    if name == OURS:
        return sparse(case, GroupedBackend(block))
    return sparse(case, LoopBackend()) if name == LOOP else peer(name, case)


def sparse(case: Case, backend: Backend) -> nn.Module:
    """Our layer with a backend."""
    layer = case.shape.build()
    assert isinstance(layer, SparseMoE | MHMoE)
    (layer.moe if isinstance(layer, MHMoE) else layer).experts.backend = backend
    return layer
