"""Run by test_routing_dump on ranks: evaluations on two ranks, and one on the first alone."""

import os
import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from mhmoe_mm.callbacks.expert_examples import ExpertExamples
from mhmoe_mm.callbacks.routing_dump import RoutingDump
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.moe import GeluExperts, MHMoE
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from tests.tasks.batches import PATCH, SEQ, SIZE, VOCAB, batch
from tests.tasks.training import QUIET, loader


def net_of_even_experts() -> BEiT3:
    """As `small_net`, with a number of experts that two ranks can share."""
    sparse = partial(MHMoE, num_heads=2, num_experts=6, experts=partial(GeluExperts, hidden=13))
    layout = SharedLayout(partial(GeluFFN, hidden=29), sparse)
    return BEiT3(layout, SIZE, PATCH, VOCAB, 28, 2, 2, max_text=SEQ)


def evaluate(given, folder: Path, **options) -> None:
    torch.manual_seed(0)
    task = MaskedPretraining(net_of_even_experts(), NormalizedPixels(PATCH))
    settings = QUIET | {"logger": CSVLogger(folder)} | options
    trainer = Trainer(**settings, callbacks=[ExpertActivation(), ExpertExamples(), RoutingDump()])
    trainer.validate(task, loader(given), verbose=False)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank = int(os.environ["RANK"])
    given = [batch(3, seed) for seed in (0, 10, 20, 30)]
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
    options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False}
    evaluate(given[rank::2], folder / "two", **options)
    options["strategy"] = FSDP2(expert_parallel=2)
    evaluate(given[rank::2], folder / "sharded", **options)
    torch.distributed.destroy_process_group()
    if rank == 0:
        for name in [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]:
            del os.environ[name]
        for name in [n for n in os.environ if n.startswith(("TORCHELASTIC", "MASTER", "GROUP"))]:
            del os.environ[name]
        evaluate(given, folder / "one")
