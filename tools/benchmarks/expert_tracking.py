"""What watching the experts costs: a training with `ExpertActivation` on and off in turn.

Blocks of `every_n_steps` steps alternate, so each block that is watched holds one training event,
and both arms see the same machine, network and data. Two figures come out: the paired difference
of whole blocks, which sees everything but also the machine's noise, and the time spent inside the
callback, which on a CPU is exact and on a GPU also waits for the step when it logs.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
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
    """Hands every second block of steps to the callback, in the order on off off on ..."""

    def __init__(self, watch: ExpertActivation):
        self.watch, self.block = watch, watch.every_n_steps
        self.times: list[float] = []
        self.inside: list[float] = []
        self.start = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.watch.setup(trainer, pl_module, stage)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % self.block == 0:
            self._mark(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if watched(batch_idx // self.block):
            start = time.perf_counter()
            self.watch.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            self.inside.append(time.perf_counter() - start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark(pl_module)

    def _mark(self, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.start:
            self.times.append((now - self.start) / self.block)
        self.start = now


def watched(block: int) -> bool:
    """Whether this block is watched; a pair's order alternates, so that drift cancels."""
    return block % 4 in (0, 3)


def report(times: list[float], inside: list[float], warm_blocks: int) -> str:
    """Step times in both arms, and the overhead in percent with its quartiles."""
    kept = list(enumerate(times))[warm_blocks:]
    on = [t for block, t in kept if watched(block)]
    off = [t for block, t in kept if not watched(block)]
    share = sorted(100 * (a / b - 1) for a, b in zip(on, off, strict=True))
    low, middle, high = statistics.quantiles(share, n=4)
    without, with_it = statistics.median(off), statistics.median(on)
    hooks = 100 * sum(inside) / len(inside) / without
    usual, event = statistics.median(inside), max(inside)
    return (
        f"step without {1e3 * without:.2f} ms, with {1e3 * with_it:.2f} ms, "
        f"{len(share)} pairs of blocks\n"
        f"overhead, whole blocks: median {middle:+.2f} %, quartiles {low:+.2f} to {high:+.2f} %, "
        f"range {share[0]:+.2f} to {share[-1]:+.2f} %\n"
        f"overhead, inside the callback: {hooks:.3f} % "
        f"(most steps {1e6 * usual:.0f} us, slowest event {1e3 * event:.1f} ms)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="What watching the experts costs a training step.")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of blocks, at least 2")
    parser.add_argument("--every-n-steps", type=int, default=50)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text", type=int, default=32, help="text tokens of each pair")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--detail", action="store_true")
    args = parser.parse_args()
    if args.pairs < 2:
        parser.error(f"--pairs is {args.pairs}, but a spread needs at least 2")
    switch = Switch(ExpertActivation(args.every_n_steps, detail=args.detail))
    steps = (args.pairs + 1) * 2 * args.every_n_steps  # the first pair warms up
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=args.accelerator,
            devices=1,
            max_steps=steps,
            callbacks=[switch],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        task = Pairs(args.dim, args.layers, args.experts, args.batch, args.text)
        trainer.fit(task, DataLoader(range(steps)))  # pyright: ignore[reportArgumentType]
    print(report(switch.times, switch.inside[args.every_n_steps :], warm_blocks=2))


if __name__ == "__main__":
    main()
