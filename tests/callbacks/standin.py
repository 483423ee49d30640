"""Loads by hand, and the smallest task that returns them."""

from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from mhmoe_mm.moe.routing import Load

NAMES = ("image", "text")


def load_of(
    counts: Sequence[Sequence[int]], token: Sequence[int], dropped: Sequence[int] = (0, 0)
) -> Load:
    """A load with these counts by kind, from a router that is certain of what it does."""
    count = torch.tensor(counts, dtype=torch.float32)
    first = count.sum(dim=0)
    return Load(
        count=count,
        dropped=torch.tensor(dropped, dtype=torch.float32),
        token=torch.tensor(token, dtype=torch.float32),
        first=first,
        prob=first.clone(),
        entropy=torch.tensor(0.0),
        square_logsumexp=torch.tensor(0.0),
        names=NAMES,
    )


class Watched(LightningModule):
    """A task of one parameter; `loads(stage, batch)` says what each step returns."""

    def __init__(self, loads: Callable[[str, int], dict[str, Load]]):
        super().__init__()
        self.loads = loads
        self.net = torch.nn.Linear(1, 1)

    def _step(self, stage: str, batch: torch.Tensor):
        loss = self.net(batch.float()[:, None]).square().mean()
        return {"loss": loss, "loads": self.loads(stage, int(batch[0]))}

    def training_step(self, batch, batch_idx):
        return self._step("train", batch)

    def validation_step(self, batch, batch_idx):
        return self._step("val", batch)

    def test_step(self, batch, batch_idx):
        return self._step("test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def numbers(end: int, first: int = 0, every: int = 1) -> DataLoader:
    """Batches of one element: `first`, `first + every`, ... below `end`."""
    return DataLoader(list(range(first, end, every)), batch_size=1)  # pyright: ignore[reportArgumentType]


def quiet_trainer(folder, callbacks: Sequence[Callback], logger=False, **options) -> Trainer:
    """A trainer on one CPU process that shows nothing and keeps nothing unless told."""
    settings = {
        "accelerator": "cpu",
        "devices": 1,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
        "logger": logger,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(settings | options))
