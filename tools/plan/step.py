"""The training step of one rank: sharding, forward, backward, optimizer, as a training has them."""

import warnings
from typing import Any

import torch
from torch.optim import Optimizer

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.moe import AutoBackend, Experts
from mhmoe_mm.parallel.sharding import Meshes, Sharding, meshes_of, shard
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.retrieval import Retrieval
from tools.compare.nets import built
from tools.plan.settings import Setting, read_net


def task_of(setting: Setting, device: str = "meta") -> Task:
    """The task, its weights on a device; on the meta device they have no values.

    Raises:
        ValueError: the net cannot be built, or is not one for the task.
    """
    try:
        net = built(read_net(setting.net), device)
    except Exception as error:  # jsonargparse raises many kinds, and long
        reason = " ".join(str(error).split())[-300:]
        raise ValueError(f"{setting.net} cannot be built: {reason}") from error
    wanted = Decoder if setting.task == "language_modeling" else BEiT3
    if not isinstance(net, wanted):
        raise ValueError(
            f"{setting.net} is a {type(net).__name__}, and {setting.task} needs a "
            f"{wanted.__name__}: name another net, or another --task."
        )
    longest = net.text_embedding.max_text if isinstance(net, BEiT3) else net.max_text
    if setting.text > longest:
        raise ValueError(
            f"{setting.net} reads texts of up to {longest} tokens, got --text {setting.text}."
        )
    with torch.device(device):
        if isinstance(net, Decoder):
            return LanguageModeling(net)
        if setting.task == "retrieval":
            return Retrieval(net)
        return MaskedPretraining(net, NormalizedPixels(net.image_embedding.patch.stride[0]))


def spread(task: Task, setting: Setting, meshes: Meshes | None) -> None:
    """Shard the task over all ranks, in place; nothing where there is one. Experts are carried out
    as on a GPU.
    """
    for module in task.modules():
        if isinstance(module, Experts) and isinstance(module.backend, AutoBackend):
            module.backend = module.backend.grouped
    if meshes is None:
        return
    gather = torch.bfloat16 if setting.mixed else None
    how = Sharding(gather, setting.recompute, keep_gathered=setting.keep_gathered)
    shard(task, ("losses",), meshes, how)


def ranks_of(setting: Setting) -> Meshes | None:
    """All ranks, arranged; there is a process group. None for a single one."""
    if setting.world == 1:
        return None
    return meshes_of(setting.world, setting.expert_parallel, setting.replicas, "cpu")


def loss_of(task: Task, batch: Any, setting: Setting) -> torch.Tensor:
    """The loss of a micro-batch as a training step has it."""
    device = next(task.parameters()).device.type  # a planner's task began on another one
    with torch.autocast(device, torch.bfloat16, enabled=setting.mixed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"You are trying to `self\.log\(\)`")  # no trainer
        return task.training_step(batch, 0)["loss"]


def optimizer_of(task: Task) -> Optimizer:
    """The task's own, for its parameters as they are now."""
    return task.make_optimizer(task.named_parameters())


def take_step(
    task: Task,
    optimizer: Optimizer,
    batch: Any,
    setting: Setting,
    micro_batches: int,
) -> None:
    """Forward and backward of some micro-batches, then the optimizer."""
    for _ in range(micro_batches):
        loss_of(task, batch, setting).backward()
    task.forget_loads()
    optimizer.step()
    optimizer.zero_grad()
