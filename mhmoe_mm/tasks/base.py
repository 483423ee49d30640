"""What every task has in common: add up named losses, balance the experts, optimise.

A task is a network and what is asked of it. It says how a batch turns into predictions (`losses`);
the rest is here, once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from mhmoe_mm.checkpoint import Loaded, check_path, load_moments, load_weights
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.losses import Prediction, perplexity
from mhmoe_mm.metrics.prediction_mean import PredictionMean
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.moe.routing import Load, total_load
from mhmoe_mm.optim import AdamW, WarmupCosine
from mhmoe_mm.parallel.agreement import any_rank, is_shared_out
from mhmoe_mm.parallel.deferred import is_deferred
from mhmoe_mm.parallel.norms import clip_grad_norm, clip_grad_value
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.parallel.whole_step import of_all_ranks
from mhmoe_mm.prediction_files import PredictionFile

OptimizerFactory = Callable[[Iterable], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]


class Outcome(NamedTuple):
    """What a batch came to."""

    predictions: dict[str, Prediction]
    """By objective."""
    loads: dict[str, Load]
    """By sparse layer, its path in the net; the sum over the forwards of the step."""
    shown: dict[str, Tensor] = {}  # noqa: RUF012 a NamedTuple's defaults are shared and fixed
    """Further numbers that a training step logs, by name."""


class Task(LightningModule, ABC):
    """A network and what is asked of it. Abstract; a task defines `losses`, and `predict` and
    `prediction_file` if there is something to predict.

    A task with scores of its own has them as attributes, torchmetrics classes whose `compute` gives
    numbers by name, and updates them in `evaluate`; logging and resetting them is done here.

    The loss of a step is the weighted sum of its objectives' losses, plus `balance_weight` times
    the balance loss and `z_weight` times the z-loss of every sparse layer, over the tokens of the
    whole step (the papers' 0.01, summed over layers).

    Args:
        net: the network; its sparse layers report loads under their own paths.
        objectives: the weight of every objective, by name.
        optimizer: makes the optimizer from named parameters.
        schedule: makes the schedule from the optimizer and the number of steps.
        balance_weight: of every sparse layer's load-balancing loss.
        z_weight: of every router's z-loss.
        init_from: a checkpoint or safetensors file; once a trainer begins, the network starts from
            its weights and the heads that fit, and a fit with the optimizer's state where the
            folder of an upcycled model has it, unless a checkpoint of this task is restored.
    """

    prediction_file: PredictionFile | None = None
    """What predictions are written as; None in a task that has none."""
    token_objectives: tuple[str, ...] = ()
    """The objectives that predict tokens of texts; an evaluation gives their perplexity too."""

    def __init__(
        self,
        net: nn.Module,
        objectives: dict[str, float],
        optimizer: OptimizerFactory = AdamW,
        schedule: ScheduleFactory = WarmupCosine,
        balance_weight: float = 0.01,
        z_weight: float = 0.0,
        init_from: str | None = None,
    ):
        super().__init__()
        if init_from is not None:
            check_path(init_from)
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()  # a config's plain values; objects made in Python are not
        self.net = net
        self.objectives = objectives
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.init_from = init_from
        self.not_loaded: list[str] = []
        """Weights that `init_from` did not have, so that they are as they started."""
        self._start: Loaded | None = None  # of a fit, until its optimizer is made
        self._evaluated = {name: PredictionMean() for name in objectives}
        self._metrics = nn.ModuleList(self._evaluated.values())  # so that they follow the device
        self._waiting: dict[str, Load] = {}  # loads of accumulated batches, until the routers step
        self.is_predicted: Callable[[Any, int], bool] = _never
        """Whether a batch, by its number, need not be predicted: whoever keeps predictions knows.
        """

    @abstractmethod
    def losses(self, batch: Any) -> Outcome:
        """Predict what the batch asks for."""

    def evaluate(self, batch: Any) -> Outcome:
        """As `losses`, for an evaluation; here a task also updates its own metrics."""
        return self.losses(batch)

    def predict(self, batch: Any) -> list[dict[str, Any]]:
        """What `prediction_file` is to hold of every row of the batch, in order, those that only
        fill it up included.
        """
        raise ValueError(
            f"{type(self).__name__} has nothing to predict: it is a task to train and validate. "
            "Fine-tune a task such as VQA or Captioning from its checkpoint, with `init_from`."
        )

    def setup(self, stage: str) -> None:
        """Load `init_from`: late enough to be seen, early enough for every way to shard."""
        if self.init_from is None:
            return
        if is_deferred(self.net):
            raise ValueError(
                f"The weights of {self.init_from} need a network that is there as a whole: leave "
                "`deferred` of the strategy out, or `init_from`."
            )
        report = load_weights(self, self.init_from)
        self.init_from = None  # a test after a fit must not start over
        self.not_loaded = report.missing
        self._start = report if stage == "fit" else None
        for line in report.lines():
            rank_zero_info(line)

    def configure_model(self) -> None:
        """Shard the network, where there is a strategy that does so."""
        if self._trainer is not None and isinstance(self.trainer.strategy, FSDP2):
            self.trainer.strategy.shard(self, ("losses", "evaluate", "predict"))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how texts are read, where the data module knows it as its `texts`: with that, the
        file is of use on its own.
        """
        texts: Texts | None = getattr(getattr(self.trainer, "datamodule", None), "texts", None)
        if texts is not None:
            checkpoint["texts"] = texts.plain()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """These weights are not to be replaced by those that their training started from."""
        self.init_from, self.not_loaded, self._start = None, [], None

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Loss of one batch; `loads` is for callbacks, detached."""
        outcome = self.losses(batch)
        loads = {name: load.detach() for name, load in outcome.loads.items()}
        for name, load in loads.items():
            waiting = self._waiting.get(name)
            self._waiting[name] = load if waiting is None else total_load([waiting, load])
        predictions, balanced = of_all_ranks(outcome.predictions, outcome.loads)
        loss = self._weighted(predictions)
        values = {"train/loss": loss.detach()}
        if balanced:
            balance = torch.stack([load.balance for load in balanced.values()])
            z_loss = torch.stack([load.z_loss for load in balanced.values()])
            loss = loss + self.balance_weight * balance.sum() + self.z_weight * z_loss.sum()
            values["train/balance"] = balance.detach().mean()
        for name, prediction in predictions.items():
            values[f"train/{name}"] = prediction.loss.detach()
            if prediction.correct is not None:
                share = prediction.correct / prediction.predicted.clamp(min=1)
                values[f"train/{name}_accuracy"] = share
        values |= {f"train/{name}": value for name, value in outcome.shown.items()}
        self.log_dict(values)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return {"loss": loss, "loads": loads}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Predictions of one batch; logged at the end as means over all of them."""
        return self._evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """As in validation."""
        return self._evaluate(batch)

    @final
    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """What is predicted of the rows of a batch that do not only fill it up; empty where it
        `is_predicted` already.
        """
        done = self.is_predicted(batch, batch_idx)
        if not self.any_rank(not done):
            return []
        rows = zip(self.predict(batch), batch.valid.tolist(), strict=True)
        return [row for row, valid in rows if valid and not done]

    def any_rank(self, here: bool) -> bool:
        """Whether it is so on any of the ranks that share this network out: they must run it
        equally often. Where every rank has all of it, only `here` counts.
        """
        return any_rank(here, self.device) if is_shared_out(self) else here

    def _evaluate(self, batch: Any) -> dict[str, Any]:
        outcome = self.evaluate(batch)
        for name, prediction in outcome.predictions.items():
            self._evaluated[name].update(prediction)
        valid = getattr(batch, "valid", None)
        if valid is not None and len(valid) == 1 and not valid.any():
            return {"loads": {}}  # the row only fills this rank up; its experts do not count
        return {"loads": {name: load.detach() for name, load in outcome.loads.items()}}

    def on_validation_epoch_end(self) -> None:
        self._log_evaluated("val")

    def on_test_epoch_end(self) -> None:
        self._log_evaluated("test")

    def _log_evaluated(self, stage: str) -> None:
        """Log every objective's means, and as `STAGE/loss` their weighted sum: no balance terms.

        Then the task's own metrics, under the names that they give.
        """
        total, predicted = torch.zeros((), device=self.device), False
        for name, metric in self._evaluated.items():
            means = metric.compute() if metric.update_called else {}
            metric.reset()
            for what, value in means.items():
                key = f"{stage}/{name}" if what == "loss" else f"{stage}/{name}_{what}"
                self.log(key, value, sync_dist=True)
            if means and name in self.token_objectives:
                value = perplexity(means["loss"])
                self.log(f"{stage}/{name}_perplexity", value, sync_dist=True)
            total = total + self.objectives[name] * means.get("loss", 0.0)
            predicted = predicted or bool(means)
        if predicted:
            self.log(f"{stage}/loss", total, prog_bar=True, sync_dist=True)
        for metric in self.children():
            if isinstance(metric, Metric) and metric.update_called:
                for name, value in metric.compute().items():
                    self.log(f"{stage}/{name}", value.to(self.device), sync_dist=True)
                metric.reset()

    def _weighted(self, predictions: dict[str, Prediction]) -> Tensor:
        losses = [self.objectives[name] * p.loss for name, p in predictions.items()]
        return torch.stack(losses).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let every router adapt to the load of the whole step, over micro-batches and ranks.

        The one place where a loss-free balance bias moves.
        """
        if not self._waiting:
            return
        reduce = self.trainer.strategy.reduce
        for name, load in self._waiting.items():
            layer = self.net.get_submodule(name)
            assert isinstance(layer, SparseMoE | MHMoE)
            layer.router.step(load._replace(count=reduce(load.count.clone(), reduce_op="sum")))
        self._waiting = {}

    def forget_loads(self) -> None:
        """The step is left out: routers do not adapt to it either."""
        self._waiting = {}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As the trainer says, also where gradients are spread over ranks."""
        strategy = self.trainer.strategy
        if gradient_clip_val is None or not isinstance(strategy, FSDP2):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            clip_grad_value(self.parameters(), gradient_clip_val)
        else:
            clip_grad_norm(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(self.named_parameters())
        start, self._start = self._start, None
        if start is not None and self.trainer.ckpt_path is None:  # which may be restored only later
            named = self.named_parameters()
            if line := load_moments(optimizer, named, start.path, start.as_they_were):
                rank_zero_info(line)
        # Asking for the estimate loads the data too early for exact resumption: only if need be.
        steps = self.trainer.max_steps
        if steps < 0:
            steps = int(self.trainer.estimated_stepping_batches)
        schedule = self.make_schedule(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }


def _never(batch: Any, batch_idx: int) -> bool:
    return False
