"""Lightning's strategy for networks sharded over ranks: FSDP2, with expert parallelism.

Everything that moves is torch's: `fully_shard`, DTensor, distributed checkpoints. On CPU the ranks
talk through gloo, so what runs on many GPUs can be tried on a laptop.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.strategies.model_parallel import _load_raw_module_state
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mhmoe_mm.parallel.deferred import fill, is_deferred
from mhmoe_mm.parallel.sharding import Sharding, check_ranks, meshes_of, shard
from mhmoe_mm.storage.background import Writer, snapshot
from mhmoe_mm.storage.checkpoint_io import OPTIMIZER, TRAINING, named, numbered
from mhmoe_mm.storage.sealed import read_sealed
from mhmoe_mm.storage.sharded import is_sharded, load_sharded, save_sharded

GATHERED = {
    "bf16-mixed": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""By the trainer's precision: that in which weights come together."""


class FSDP2(ModelParallelStrategy):
    """Every rank holds a share of weights, gradients and optimizer state; what `fsdp` means here.

    Args:
        expert_parallel: over how many ranks the experts are spread; divides the number of ranks and
            every layer's number of experts. Tokens travel to their experts.
        replicas: copies of the network, each sharded over `ranks / replicas` ranks; with many nodes
            one copy a node keeps most traffic within it. Without expert parallelism only.
        recompute: compute the blocks' activations again in the backward pass.
        compile: compile every block.
        offload: keep weights, gradients and optimizer state in the memory of the host.
        keep_gathered: keep a block's weights from its forward to its backward.
        deferred: no process ever holds the whole network, only a block of it at a time, and its own
            share: for those that are too large for one.
        gather: precision in which weights come together and blocks compute; "auto" is the
            trainer's.
        sharded_checkpoints: every rank writes its share, into a folder; otherwise rank 0 collects
            all of it and writes one file.
        timeout_s: after so many seconds without an answer from the others a rank gives up.
    """

    def __init__(
        self,
        expert_parallel: int = 1,
        replicas: int = 1,
        recompute: bool = False,
        compile: bool = False,
        offload: bool = False,
        keep_gathered: bool = False,
        deferred: bool = False,
        gather: Literal["auto", "fp32", "bf16"] = "auto",
        sharded_checkpoints: bool = True,
        timeout_s: float = 600.0,
    ):
        check_ranks(expert_parallel, replicas)
        super().__init__(
            save_distributed_checkpoint=sharded_checkpoints, timeout=timedelta(seconds=timeout_s)
        )
        self.expert_parallel, self.replicas, self.gather = expert_parallel, replicas, gather
        self.recompute, self.compile, self.offload = recompute, compile, offload
        self.keep_gathered, self.deferred = keep_gathered, deferred
        self.timeout_s = timeout_s
        self._writers: dist.ProcessGroup | None = None
        """In which threads that write checkpoints talk, beside what training exchanges."""

    def setup_environment(self) -> None:
        """Lightning's own mesh has all ranks as data-parallel ones: each reads rows of its own."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        if self.offload and self.root_device.type == "cuda":
            self._process_group_backend = "cpu:gloo,cuda:nccl"  # norms of gradients on the host
        super().setup_environment()

    def model_to_device(self) -> None:
        """All of it, or, with `offload`, what is not sharded: buffers, scalars and metrics."""
        if not self.offload:
            super().model_to_device()
            return
        assert self.model is not None
        device = self.root_device
        self.model._apply(lambda held: held if isinstance(held, DTensor) else held.to(device))

    def shard(self, module: LightningModule, methods: tuple[str, ...]) -> None:
        """Shard a module in place, once; `methods` are called instead of its `forward`."""
        if isinstance(module, FSDPModule):
            return
        sharding = Sharding(
            self._gathered(), self.recompute, self.compile, self.offload, self.keep_gathered
        )
        ranks, device = self.world_size, self.root_device.type
        meshes = meshes_of(ranks, self.expert_parallel, self.replicas, device)
        shard(module, methods, meshes, sharding)
        for net in module.children():
            if is_deferred(net):
                fill(net, torch.device("cpu") if self.offload else self.root_device)
        told = f"{self.world_size} ranks"
        if self.expert_parallel > 1:
            told += f", experts over {self.expert_parallel} of them"
        if self.replicas > 1:
            told += f", {self.replicas} replicas"
        rank_zero_info(f"fsdp: FSDP2, sharded over {told}")

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any = None
    ) -> None:
        """Into a folder to which every rank writes its share, or into one file; now, or, where
        `storage_options` are a Writer, by that.
        """
        path = Path(self.broadcast(filepath))
        weights = [name for name in ("state_dict", TRAINING) if name in checkpoint]
        if not self._save_distributed_checkpoint:
            checkpoint |= {name: self._whole(checkpoint[name]) for name in weights}
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)
            return
        tensors = {name: checkpoint.pop(name) for name in weights}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            tensors[OPTIMIZER.format(number)] = state
        if storage_options is None:
            save_sharded(tensors, checkpoint, path)
            return
        assert isinstance(storage_options, Writer)
        group, moved = self._group_of_writers(), self.root_device.type != "cpu" and not self.offload
        held, rest = snapshot(tensors, offloaded=moved), snapshot(checkpoint)
        storage_options.add(lambda: save_sharded(held, rest, path, group))

    def _group_of_writers(self) -> dist.ProcessGroup:
        if self._writers is None:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))
            assert isinstance(group, dist.ProcessGroup)
            self._writers = group
        return self._writers

    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """From either, whatever number of ranks wrote it; verified first, and no code is run."""
        path = Path(self.broadcast(checkpoint_path))
        module = self.lightning_module
        assert module is not None
        fitting = module.trainer.state.fn == TrainerFn.FITTING
        if not is_sharded(path):
            content = read_sealed(path, mmap=True)
            training = content.pop(TRAINING, None)
            if training is not None and fitting:
                _load_raw_module_state(training, module, strict=module.strict_loading)
                content[TRAINING] = _copied(get_model_state_dict(module))
            _load_raw_module_state(content.pop("state_dict"), module, strict=module.strict_loading)
            whole = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            for optimizer, state in zip(
                self.optimizers, content.get("optimizer_states", ()), strict=False
            ):
                by_name = named(state, module, optimizer)
                set_optimizer_state_dict(module, optimizer, optim_state_dict=by_name, options=whole)
            return content
        tensors: dict[str, Any] = {"state_dict": get_model_state_dict(module)}
        for number, optimizer in enumerate(self.optimizers):
            tensors[OPTIMIZER.format(number)] = get_optimizer_state_dict(module, optimizer)
        training = {TRAINING: lambda: _copied(get_model_state_dict(module))} if fitting else None
        rest = load_sharded(tensors, path, training)
        module.load_state_dict(tensors["state_dict"], strict=module.strict_loading)
        for number, optimizer in enumerate(self.optimizers):
            state = tensors[OPTIMIZER.format(number)]
            set_optimizer_state_dict(module, optimizer, optim_state_dict=state)
        return rest | {name: tensors[name] for name in (TRAINING,) if name in tensors}

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """In shares, whatever is written: callbacks may put others beside them."""
        assert self.model is not None
        return get_model_state_dict(self.model, options=StateDictOptions(cpu_offload=True))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """By the names of parameters in shards, by their numbers in one file."""
        if self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        plain = getattr(optimizer, "_optimizer", optimizer)
        module = self.lightning_module
        assert module is not None
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_optimizer_state_dict(module, plain, options=whole)
        return numbered(state) if self.is_global_zero else state

    def _whole(self, weights: dict[str, Any]) -> dict[str, Any]:
        """On rank 0, on the CPU, one after the other; nothing on the others."""
        whole = {}
        for name, weight in weights.items():
            if isinstance(weight, DTensor):
                there = weight.to(weight.device_mesh.device_type)
                assert isinstance(there, DTensor)
                weight = there.full_tensor()
            if self.is_global_zero:
                whole[name] = weight.cpu()
        return whole

    def _gathered(self) -> torch.dtype | None:
        if self.gather == "auto":
            return GATHERED.get(str(self.precision_plugin.precision))
        return torch.bfloat16 if self.gather == "bf16" else None


def _copied(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weight.clone() for name, weight in weights.items()}
