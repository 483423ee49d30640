"""Lines of progress say where the run is."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from mhmoe_mm.callbacks.progress_lines import ProgressLines


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.log("train/loss", 0.25, prog_bar=True)
        return (self.weight * batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log_dict({"val/loss": 0.75, "val/deeper/loss": 0.5})

    def test_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("test/loss", 0.75)

    def predict_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return batch

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def lines(seconds: float, **settings: object) -> Trainer:
    return Trainer(
        accelerator="cpu", callbacks=[ProgressLines(seconds)], logger=False,
        enable_checkpointing=False, enable_model_summary=False, **settings,
    )  # fmt: skip


def fit(seconds: float, **settings: object) -> None:
    trainer = lines(seconds, **settings)
    trainer.fit(Line(), DataLoader(torch.ones(7)), DataLoader(torch.ones(2)))


def test_the_last_step_and_every_validation_have_a_line(capsys: pytest.CaptureFixture[str]):
    fit(seconds=1e9, max_epochs=2, num_sanity_val_steps=1)
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(
        [
            "epoch 0  step 7/14  validated  val/loss 0.75",
            "epoch 1  step 14/14  validated  val/loss 0.75",
            next(line for line in lines if "step/s" in line),
        ]
    )
    assert next(line for line in lines if "step/s" in line).startswith("epoch 1  step 14/14  ")


def test_with_no_seconds_between_lines_every_step_has_one(capsys: pytest.CaptureFixture[str]):
    fit(seconds=0.0, max_steps=5, limit_val_batches=0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == [f"step {n}/5" for n in range(1, 6)]
    assert all(line.endswith("train/loss 0.25") for line in lines)


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_goes_through_data_once_says_how_far_it_is(
    command: str, capsys: pytest.CaptureFixture[str]
):
    def shown(seconds: float) -> list[str]:
        options = {} if command == "predict" else {"verbose": False}
        getattr(lines(seconds), command)(Line(), DataLoader(torch.ones(5)), **options)
        return capsys.readouterr().out.splitlines()

    found = [line.split("  ")[:2] for line in shown(0.0)]
    assert found == [[command, f"batch {n}/5"] for n in range(1, 5)]
    assert shown(1e9) == []
