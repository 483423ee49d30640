"""What is measured: our layer, the plain loop, the dense net of equal multiply-adds, peers."""

import torch
from torch import nn

from mhmoe_mm.moe import AutoBackend, Backend, GroupedBackend, LoopBackend, MHMoE, SparseMoE
from mhmoe_mm.moe.backend_triton import TritonBackend
from tools.benchmarks.cases import Case
from tools.benchmarks.peers import peer

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DENSE, OURS, GROUPED, TRITON, LOOP = "dense", "ours", "grouped", "triton", "loop"
NEEDS_CUDA = f"{TRITON} is left out: it needs a CUDA device (--device cuda)"


def made(name: str, case: Case, block: int | None) -> nn.Module:
    """The layer of an engine, by its name; `block` is that of our own ones, None their usual.

    Raises:
        Unfit: the case is not for this peer.
        ValueError: `block` is not for the backend.
    """
    if name == DENSE:
        return case.dense()
    if name == OURS:
        return sparse(case, AutoBackend(block))
    if name == GROUPED:
        return sparse(case, GroupedBackend(block))
    if name == TRITON:
        return sparse(case, TritonBackend() if block is None else TritonBackend(block))
    return sparse(case, LoopBackend()) if name == LOOP else peer(name, case)


def ours(device: str) -> list[str]:
    """Our own engines, the loop left out, that such a device carries out."""
    return [OURS, TRITON] if device.startswith("cuda") else [OURS, GROUPED]


def sparse(case: Case, backend: Backend) -> nn.Module:
    """Our layer with a backend."""
    layer = case.shape.build()
    assert isinstance(layer, SparseMoE | MHMoE)
    (layer.moe if isinstance(layer, MHMoE) else layer).experts.backend = backend
    return layer
