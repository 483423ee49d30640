"""A small task in the shape of the real ones: factories that hold factories make its net."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Router(nn.Module, ABC):
    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...


class TopK(Router):
    def __init__(self, width: int, num_experts: int, top_k: int = 2):
        super().__init__()
        if top_k > num_experts:
            raise ValueError(f"top_k={top_k} exceeds num_experts={num_experts}.")
        self.top_k, self.gate = top_k, nn.Linear(width, num_experts)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x)


class Hash(TopK):
    def __init__(self, width: int, num_experts: int, salt: int = 3):
        super().__init__(width, num_experts)
        self.salt = salt


class Sparse(nn.Module):
    def __init__(
        self,
        dim: int,
        num_heads: int = 2,
        num_experts: int = 5,
        router: Callable[[int, int], Router] = TopK,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not divisible by num_heads={num_heads}.")
        self.num_heads = num_heads
        self.router = router(dim // num_heads, num_experts)
        self.merge = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x)


class Dense(nn.Module):
    def __init__(self, dim: int, hidden: int = 7):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Layout:
    def __init__(
        self,
        dense: Callable[[int], nn.Module] = Dense,
        sparse: Callable[[int], nn.Module] | None = None,
    ):
        self.dense, self.sparse = dense, sparse


class Net(nn.Module):
    def __init__(self, layout: Layout, dim: int = 6, num_layers: int = 4):
        super().__init__()
        self.dim, self.layout = dim, layout
        kinds = [
            layout.sparse if i % 2 and layout.sparse else layout.dense for i in range(num_layers)
        ]
        self.blocks = nn.Sequential(*(kind(dim) for kind in kinds))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class BuggyNet(nn.Module):
    def __init__(self, dim: int = 6):
        super().__init__()
        raise TypeError(f"a bug of ours, not of whoever wrote dim={dim}")


class Task(LightningModule, ABC):
    @abstractmethod
    def losses(self, batch: Tensor) -> dict[str, Tensor]: ...


class Toy(Task):
    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable], torch.optim.Optimizer] = torch.optim.AdamW,
        scale: float = 1.0,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net, self.optimizer, self.scale = net, optimizer, scale

    def losses(self, batch: Tensor) -> dict[str, Tensor]:
        return {"square": self.net(batch).square().mean() * self.scale}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.losses(batch)["square"]
        self.log("train/square", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/square", self.losses(batch)["square"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class Rows(Dataset):
    def __init__(self, dim: int, fault: str):
        self.dim, self.fault = dim, fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        if index == 5 and self.fault == "image":
            raise ValueError("00003.tar: sample 000000005: the image ends\nafter 17 bytes.")
        if index == 5 and self.fault == "bug":
            raise TypeError("a bug in a worker")
        return torch.randn(self.dim)


class Data(LightningDataModule):
    def __init__(self, dim: int = 6, fault: str = "none", workers: int = 0, token: str = ""):
        super().__init__()
        self.save_hyperparameters()
        self.dim, self.fault, self.workers = dim, fault, workers

    def setup(self, stage: str) -> None:
        if self.fault == "folder":
            raise FileNotFoundError(2, "No such file or directory", "nowhere/train")

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.dim, self.fault), 2, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.dim, "none"), 2)
