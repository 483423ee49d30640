"""Averaged weights from a configuration, as `docs/experts.md` has them."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from mhmoe_mm.callbacks.averaging import AveragedWeights

STEPS, DECAY = 7, 0.75


class Noted(LightningModule):
    """Writes down its weight whenever it is validated, and after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(self.net.weight, 2.0)
        self.register_buffer("bias_of_router", torch.zeros(3))
        self.seen: list[tuple[str, float]] = []

    def training_step(self, batch, batch_idx):
        self.get_buffer("bias_of_router").add_(1)
        return self.net(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.seen.append(("validated", self.net.weight.item()))

    def on_train_batch_start(self, batch, batch_idx):
        self.seen.append(("trains", self.net.weight.item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        # The same batch at every step: where a resumed run starts to read does not matter.
        return DataLoader(torch.full((STEPS, 1), 0.5).split(1))  # pyright: ignore

    def val_dataloader(self):
        return DataLoader([torch.zeros(1)])  # pyright: ignore


def run(folder: Path, steps: int, decay: float | None, resume: str | None = None) -> LightningCLI:
    """Train from a config file, as `mhmoe-mm fit` does."""
    average = f"""
  callbacks:
    - class_path: mhmoe_mm.callbacks.averaging.AveragedWeights
      init_args: {{decay: {decay}}}
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {{dirpath: {folder}, save_last: true, filename: "{{step}}"}}"""
    folder.mkdir(exist_ok=True)
    config = folder / "run.yaml"
    config.write_text(
        f"""
trainer:
  accelerator: cpu
  devices: 1
  max_steps: {steps}
  max_epochs: -1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  default_root_dir: {folder}
  enable_checkpointing: {"true" if decay is not None else "false"}
  {average if decay is not None else ""}
"""
    )
    args = ["--config", str(config)]
    cli = LightningCLI(Noted, args=args, run=False, save_config_callback=None)
    cli.trainer.fit(cli.model, ckpt_path=resume)
    return cli


def expected(folder: Path) -> tuple[list[float], float]:
    """The weights of plain training, and their average by the recurrence."""
    seen = run(folder, STEPS, None).model.seen
    before = [weight for what, weight in seen if what == "trains"]
    weights = [*before[1:], seen[-1][1]]
    average = weights[0]
    for weight in weights[1:]:
        average = DECAY * average + (1 - DECAY) * weight
    return weights, average


def test_a_config_file_averages_validates_the_average_and_ends_with_it(tmp_path):
    weights, average = expected(tmp_path / "plain")
    model = run(tmp_path / "ema", STEPS, DECAY).model
    assert len(weights) == STEPS
    assert [w for what, w in model.seen if what == "trains"][1:] == pytest.approx(weights[:-1])
    assert model.seen[-1] == ("validated", pytest.approx(average, rel=1e-5))
    assert model.net.weight.item() == pytest.approx(average, rel=1e-5)
    # Buffers are the router's own: they are taken over unaveraged.
    assert model.bias_of_router.tolist() == [STEPS] * 3


def test_the_checkpoint_holds_both_and_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path):
    _, average = expected(tmp_path / "plain")
    saved = tmp_path / "ema" / "last.ckpt"
    run(tmp_path / "ema", 4, DECAY)
    checkpoint = torch.load(saved, weights_only=True)
    key = "net.weight"
    assert checkpoint["state_dict"][key] != checkpoint["current_model_state"][key]
    resumed = run(tmp_path / "ema", STEPS, DECAY, resume=str(saved)).model
    assert resumed.net.weight.item() == pytest.approx(average, rel=1e-5)


def test_the_callback_is_the_one_the_documentation_names():
    text = (Path(__file__).parents[2] / "docs" / "experts.md").read_text()
    assert f"{AveragedWeights.__module__}.{AveragedWeights.__name__}" in text
