"""What watching the experts costs: a training with `ExpertActivation` on at every other step.

Steps with and without the callback alternate (on off off on ...), so both see the same machine,
network and data, and a drift cancels. A pair's difference sees everything, the machine's noise
too, hence the interval; the time inside the callback is exact on a CPU. Events, which sum, write
and log, come once in `every_n_steps` and are added by their mean.
"""

import argparse
import math
import statistics
import tempfile
import time
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from mhmoe_mm.callbacks.expert_activation import ExpertActivation
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.moe import GeluExperts, MHMoE


class Pairs(LightningModule):
    """The smallest task that trains the encoder on image-text pairs and returns its loads."""

    def __init__(self, dim: int, num_layers: int, num_experts: int, batch: int, text: int):
        super().__init__()
        experts = partial(GeluExperts, hidden=dim)
        sparse = partial(MHMoE, num_heads=2, num_experts=num_experts, experts=experts)
        layout = SharedLayout(dense=partial(GeluFFN, hidden=4 * dim), sparse=sparse)
        self.net = BEiT3(
            layout, 32, 4, vocab_size=2048, dim=dim, num_layers=num_layers, num_heads=4
        )
        self.register_buffer("image", torch.randn(batch, 3, 32, 32))
        self.register_buffer("text", torch.randint(2048, (batch, text)))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        encoded = self.net(self.image, self.text)
        loads = {name: load.detach() for name, load in encoded.loads.items()}
        return {"loss": encoded.hidden.square().mean(), "loads": loads}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Switch(Callback):
    """Hands every other step to the callback, and takes the time of all."""

    def __init__(self, watch: ExpertActivation):
        self.watch = watch
        self.starts: list[float] = []
        self.inside: dict[int, float] = {}
        self.events: set[int] = set()
        self.last_event = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.watch.setup(trainer, pl_module, stage)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.starts.append(now(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not watched(batch_idx):
            return
        if trainer.global_step - self.last_event >= self.watch.every_n_steps:
            self.last_event = trainer.global_step
            self.events.add(batch_idx)
        start = time.perf_counter()
        self.watch.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.inside[batch_idx] = time.perf_counter() - start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.starts.append(now(pl_module))


def now(pl_module: LightningModule) -> float:
    """The time when the device has done all that it was given."""
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def watched(step: int) -> bool:
    """Whether the callback sees this step; the order within a pair alternates."""
    return step % 4 in (0, 3)


def report(switch: Switch, warm_up: int) -> str:
    """Overhead in percent of a step without the callback."""
    step = [end - start for start, end in pairwise(switch.starts)]
    pairs = [(i, i + 1) if watched(i) else (i + 1, i) for i in range(warm_up, len(step) - 1, 2)]
    base = statistics.median(step[off] for _, off in pairs)
    usual = [(on, off) for on, off in pairs if on not in switch.events]
    difference = sorted(100 * (step[on] - step[off]) / base for on, off in usual)
    # Order statistics that hold the true median with 95 % probability, whatever the distribution.
    reach = 0.98 * len(difference) ** 0.5
    low = difference[max(math.floor(len(difference) / 2 - reach), 0)]
    high = difference[min(math.ceil(len(difference) / 2 + reach), len(difference) - 1)]
    event = statistics.mean(switch.inside[on] for on in switch.events if on >= warm_up)
    inside = statistics.mean(switch.inside[on] for on, _ in usual)
    amortised = 100 * event / switch.watch.every_n_steps / base
    return (
        f"step without the callback {1e3 * base:.2f} ms (median of {len(pairs)})\n"
        f"a usual step: {statistics.median(difference):+.2f} % "
        f"(median of {len(usual)} pairs, 95 % interval {low:+.2f} to {high:+.2f} %); "
        f"inside the callback {1e6 * inside:.0f} us = {100 * inside / base:.2f} %\n"
        f"an event: {1e3 * event:.1f} ms, one in {switch.watch.every_n_steps} steps: "
        f"{amortised:.2f} %\n"
        f"in all, by the time inside the callback: {100 * inside / base + amortised:.2f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What watching the experts costs a training step.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every-n-steps", type=int, default=50)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text", type=int, default=32, help="text tokens of each pair")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--detail", action="store_true")
    args = parser.parse_args()
    warm_up = 20
    if args.steps < warm_up + 2 * args.every_n_steps:
        parser.error(f"--steps {args.steps} is too few: two events and a warm-up take more")
    switch = Switch(ExpertActivation(args.every_n_steps, detail=args.detail))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=args.accelerator,
            devices=1,
            max_steps=args.steps,
            callbacks=[switch],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        task = Pairs(args.dim, args.layers, args.experts, args.batch, args.text)
        trainer.fit(task, DataLoader(range(args.steps)))  # pyright: ignore[reportArgumentType]
    print(report(switch, warm_up))


if __name__ == "__main__":
    main()
