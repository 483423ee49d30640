"""Run by test_worlds, alone and on ranks: the same trainings on any number of ranks."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mhmoe_mm.batches import PretrainingBatch
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.moe import BiasBalancedRouter, GeluExperts, MHMoE, SwiGLUExperts, TopKRouter
from mhmoe_mm.moe.scorers import CosineScorer, XMoEScorer
from mhmoe_mm.optim import AdamW, WarmupConstant
from mhmoe_mm.parallel.deferred import deferred
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.retrieval import Retrieval
from tests import language
from tests.tasks import batches
from tests.tasks.training import QUIET, loader, rows

ROWS, STEPS, ACCUMULATED = 8, 3, 2
"""Rows of a batch of all ranks; steps; batches of a step."""
EXPERTS = 4


class Training(NamedTuple):
    """A task, and its batch number n of all ranks."""

    task: Callable[..., Task]
    """From what makes its network, a call of its class unless said otherwise."""
    batch: Callable[[int], Any]
    part: Callable[[Any, int, int], Any] = rows
    """The rows of a batch from one number to another."""


@dataclass(frozen=True)
class Layout:
    """How a training is spread over ranks."""

    strategy: Callable[[], Any] | None
    worlds: tuple[int, ...]
    deferred: bool = False


GELU_EXPERTS = partial(GeluExperts, hidden=13)


def sparse(router=TopKRouter, experts=GELU_EXPERTS, **others):
    return partial(
        MHMoE, num_heads=2, num_experts=EXPERTS, router=router, experts=experts, **others
    )


def at_once(kind, *args, **options):
    return kind(*args, **options)


def encoder(make, layout=ReleasedLayout, **moe) -> BEiT3:
    built = layout(dense=partial(GeluFFN, hidden=29), sparse=sparse(**moe))
    sizes = (batches.SIZE, batches.PATCH, batches.VOCAB)
    return make(BEiT3, built, *sizes, dim=28, num_layers=3, num_heads=2, max_text=batches.SEQ)


def decoder(make, **moe) -> Decoder:
    dense, maker = partial(GeluFFN, hidden=29), sparse(**moe)
    return make(Decoder, language.VOCAB, 28, 3, 2, language.SEQ, dense, maker)


OPTIMISED = {
    # A large eps, so that gradients that are zero but for rounding move nothing.
    "optimizer": partial(AdamW, lr=3e-3, eps=1e-3),
    "schedule": WarmupConstant,
    "balance_weight": 0.1,  # large, so that a wrong one shows
    "z_weight": 0.01,
}


def pretraining(make=at_once) -> MaskedPretraining:
    net = encoder(make, router=partial(TopKRouter, scorer=XMoEScorer))
    return MaskedPretraining(net, NormalizedPixels(batches.PATCH), **OPTIMISED)


def pretraining_batch(seed: int) -> PretrainingBatch:
    parts = (batches.images, batches.texts, batches.pairs)
    return PretrainingBatch(*(part(ROWS, seed) for part in parts))


def pretraining_rows(batch: PretrainingBatch, start: int, end: int) -> PretrainingBatch:
    return PretrainingBatch(*(rows(part, start, end) for part in batch))


def language_rows(batch, start: int, end: int):
    named = batch._replace(languages=None)
    return rows(named._replace(languages=[None] * ROWS), start, end)._replace(
        languages=batch.languages
    )


def of_language(router=TopKRouter, **moe) -> Training:
    return Training(
        lambda make=at_once: LanguageModeling(decoder(make, router=router, **moe), **OPTIMISED),
        lambda seed: language.rows_of_text(ROWS, seed),
        language_rows,
    )


TRAININGS = {
    "pretraining": Training(pretraining, pretraining_batch, pretraining_rows),
    "language": of_language(),
    "language, loss-free": of_language(
        router=partial(BiasBalancedRouter, rate=0.05),
        experts=partial(SwiGLUExperts, hidden=12, sub_norm=True),
        shared=partial(GeluFFN, hidden=17),
    ),
    "retrieval": Training(
        lambda make=at_once: Retrieval(
            encoder(make, router=partial(TopKRouter, scorer=CosineScorer)), **OPTIMISED
        ),
        lambda seed: batches.captioned(ROWS, seed),
    ),
}

LAYOUTS = {
    "alone": Layout(None, (1,)),
    "ddp": Layout(
        partial(DDPStrategy, process_group_backend="gloo", find_unused_parameters=True), (2, 4)
    ),
    "fsdp": Layout(FSDP2, (1, 2, 4)),
    "recomputed": Layout(partial(FSDP2, recompute=True, keep_gathered=True), (2,)),
    "ep 2": Layout(partial(FSDP2, expert_parallel=2), (2, 4)),
    "ep 4": Layout(partial(FSDP2, expert_parallel=4, recompute=True), (4,)),
    "deferred": Layout(partial(FSDP2, deferred=True), (1, 2), deferred=True),
    "deferred, ep 2": Layout(partial(FSDP2, expert_parallel=2), (4,), deferred=True),
    "replicas": Layout(partial(FSDP2, replicas=2), (4,)),
}


def trained(training: Training, layout: Layout, rank: int, world: int) -> dict[str, Any]:
    """Losses by step, and the whole weights (on rank 0), after a few steps."""
    torch.manual_seed(0)
    task = training.task(deferred if layout.deferred else at_once)
    share = ROWS // world
    own = [
        training.part(training.batch(seed), rank * share, (rank + 1) * share)
        for seed in range(STEPS * ACCUMULATED)
    ]
    strategy = {} if layout.strategy is None else {"strategy": layout.strategy()}
    losses: list[float] = []
    task.on_train_batch_end = lambda outputs, batch, batch_idx: losses.append(  # pyright: ignore
        float(trainer.callback_metrics["train/loss"])
    )
    trainer = Trainer(
        **QUIET, **strategy, devices=world, max_steps=STEPS, accumulate_grad_batches=ACCUMULATED,
        gradient_clip_val=0.5, log_every_n_steps=1, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(task, loader(own))
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {"losses": losses, "weights": get_model_state_dict(task, options=whole)}


def write(folder: Path, rank: int, world: int) -> None:
    """All trainings in all layouts of this number of ranks, one file each."""
    for name, training in TRAININGS.items():
        for layout, how in LAYOUTS.items():
            if world not in how.worlds:
                continue
            found = trained(training, how, rank, world)
            if rank == 0:
                place = folder / f"{name}, {layout}, {world}.safetensors"
                weights = {k: v.contiguous() for k, v in found["weights"].items()}
                save_file(weights, place, {"losses": json.dumps(found["losses"])})


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
