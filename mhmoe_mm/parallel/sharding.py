"""What of a network lies where: FSDP2 for all of it, the experts spread over ranks besides.

    every block             its own unit: its weights come together for its forward and its backward
    experts (ep > 1)        each rank of a row of `ep` holds E / ep of them; the columns shard those
    scorers of routers      units of their own where blocks compute in less than float32
    all else                one unit, with the task: embeddings, heads, norms
    scalars                 on every rank

torch's `fully_shard` (FSDP2) does the work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

from mhmoe_mm.models.block import Block
from mhmoe_mm.models.decoder import DecoderLayer
from mhmoe_mm.moe.expert_parallel import ExpertParallel
from mhmoe_mm.moe.experts import Experts
from mhmoe_mm.moe.scorers import Scorer


@dataclass(frozen=True)
class Meshes:
    """The ranks, arranged for what is sharded over all of them and for the experts."""

    dense: DeviceMesh
    """All ranks, in one dimension, or in two: replicas, each sharded over the second."""
    experts: DeviceMesh | None
    """All ranks as `efsdp` x `ep`; None without expert parallelism."""


def check_ranks(expert_parallel: int, replicas: int, ranks: int | None = None) -> None:
    """Raise ValueError where ranks cannot be arranged so; without `ranks`, whatever there are."""
    if expert_parallel < 1 or replicas < 1:
        raise ValueError(
            f"expert_parallel={expert_parallel} and replicas={replicas} are numbers of ranks, 1 or "
            "more."
        )
    if expert_parallel > 1 and replicas > 1:
        raise ValueError(
            f"expert_parallel={expert_parallel} and replicas={replicas} do not go together: leave "
            "one of them at 1."
        )
    for name, number in (("expert_parallel", expert_parallel), ("replicas", replicas)):
        if ranks is not None and ranks % number:
            raise ValueError(f"{name}={number} does not divide the number of ranks, {ranks}.")


def meshes_of(ranks: int, expert_parallel: int, replicas: int, device: str) -> Meshes:
    """Arrange all ranks, once there is a process group; all of them call it.

    Args:
        ranks: all there are.
        expert_parallel: over how many of them the experts are spread.
        replicas: copies of the network.
        device: type of the ranks' devices.

    Raises:
        ValueError: a number does not divide `ranks`.
    """
    check_ranks(expert_parallel, replicas, ranks)
    if replicas > 1:
        shape = (replicas, ranks // replicas)
        dense = init_device_mesh(device, shape, mesh_dim_names=("replica", "fsdp"))
    else:
        dense = init_device_mesh(device, (ranks,), mesh_dim_names=("fsdp",))
    if expert_parallel == 1:
        return Meshes(dense, None)
    shape = (ranks // expert_parallel, expert_parallel)
    return Meshes(dense, init_device_mesh(device, shape, mesh_dim_names=("efsdp", "ep")))


@dataclass(frozen=True)
class Sharding:
    """How a network is sharded and run."""

    gather: torch.dtype | None = None
    """Precision in which weights come together and blocks compute; None: that of the weights.
    Gradients are added up in float32."""
    recompute: bool = False
    """Compute the blocks' activations a second time in the backward pass instead of keeping them.
    """
    compile: bool = False
    """Compile every block."""
    offload: bool = False
    """Keep weights, gradients and optimizer state in the memory of the host."""
    keep_gathered: bool = False
    """Keep a block's weights between its forward and its backward: faster, more memory."""


def shard(root: nn.Module, methods: tuple[str, ...], meshes: Meshes, sharding: Sharding) -> None:
    """Shard a network in place. All ranks hold the same weights before.

    Args:
        root: the network and whatever belongs to it.
        methods: names of the root's methods that are called instead of `forward`.
        meshes: the ranks.
        sharding: how.

    Raises:
        ValueError: experts that cannot be spread evenly.
    """
    pinned = meshes.dense.device_type != "cpu"  # for copies to a device, if there is one
    offload = CPUOffloadPolicy(pin_memory=pinned) if sharding.offload else OffloadPolicy()
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    mixed = MixedPrecisionPolicy(
        param_dtype=sharding.gather,
        reduce_dtype=None if sharding.gather is None else torch.float32,
        cast_forward_inputs=False,
    )
    scalars = {param for param in root.parameters() if param.ndim == 0}
    unit = partial(fully_shard, offload_policy=offload, ignored_params=scalars)
    dense = partial(unit, mesh=meshes.dense)

    for block in list(_of_kind(root, (Block, DecoderLayer))):
        if sharding.gather is not None:
            _compute_in(block, sharding.gather)
        if sharding.recompute:
            _recompute(block)
        if sharding.compile:
            block.compile()
        if sharding.gather is not None:
            for scorer in _of_kind(block, Scorer):
                dense(scorer, mp_policy=exact)
        if meshes.experts is not None:
            for experts in _of_kind(block, Experts):
                _spread(experts, meshes.experts)
                columns = meshes.experts["efsdp"]
                place = partial(_placement, columns.size())
                unit(experts, mesh=columns, mp_policy=mixed, shard_placement_fn=place)
        dense(block, mp_policy=mixed, reshard_after_forward=not sharding.keep_gathered)
    dense(root, mp_policy=exact)
    assert isinstance(root, FSDPModule)
    for method in methods:
        register_fsdp_forward_method(root, method)
    for scalar in scalars:
        if scalar.requires_grad:
            scalar.register_hook(_mean_over_ranks)


def _of_kind(
    root: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]
) -> Iterator[nn.Module]:
    return (module for module in root.modules() if isinstance(module, kind))


def _compute_in(block: nn.Module, dtype: torch.dtype) -> None:
    """Make a block compute in the precision that its weights come together in, also where the
    trainer's is float32 and what the block reads stays so.
    """
    forward: Callable[..., Any] = block.forward

    def cast(x: Tensor | list[Tensor], *args: Any, **kwargs: Any) -> Any:
        first = x if isinstance(x, Tensor) else x[0]
        if first.dtype != torch.float32:
            return forward(x, *args, **kwargs)
        with torch.autocast(first.device.type, dtype):
            return forward(x, *args, **kwargs)

    block.forward = cast


def _recompute(block: nn.Module) -> None:
    """Make a block forget its activations where there is to be a backward."""
    forward: Callable[..., Any] = block.forward

    def recomputed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    block.forward = recomputed


def _spread(experts: nn.Module, mesh: DeviceMesh) -> None:
    """Give every rank of a row of the mesh its share of the experts."""
    assert isinstance(experts, Experts)
    ep = mesh["ep"]
    if experts.num_experts % ep.size():
        raise ValueError(
            f"{experts.num_experts} experts cannot be spread evenly over expert_parallel="
            f"{ep.size()} ranks: choose a number of ranks that divides the number of experts."
        )
    experts.backend = ExpertParallel(experts.backend, ep.get_group())
    for module in experts.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            spread = distribute_tensor(param.detach(), ep, [Shard(0)], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(spread, param.requires_grad))


def _placement(columns: int, param: nn.Parameter) -> Shard | None:
    """Shard a stack of experts over their features, for other ranks have the other experts; over
    the experts where the features do not come out even.
    """
    return Shard(1) if param.shape[1] % columns == 0 else None


def _mean_over_ranks(grad: Tensor) -> Tensor:
    """What FSDP does to all other gradients; it leaves scalars alone."""
    grad = grad.clone()
    dist.all_reduce(grad)
    return grad / dist.get_world_size()
