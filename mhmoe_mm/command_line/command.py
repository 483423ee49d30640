"""Lightning's command line as this project uses it."""

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from mhmoe_mm.callbacks.checkpoints import Checkpoints
from mhmoe_mm.callbacks.finite_guard import FiniteGuard
from mhmoe_mm.callbacks.prediction_writer import PredictionWriter
from mhmoe_mm.callbacks.preemption import Preemption
from mhmoe_mm.callbacks.progress_lines import ProgressLines
from mhmoe_mm.callbacks.step_bar import StepBar
from mhmoe_mm.callbacks.watchdog import Watchdog
from mhmoe_mm.command_line.ddp import expect_unused_parameters
from mhmoe_mm.command_line.deferred_nets import net_makers
from mhmoe_mm.command_line.parser import Parser, remembering
from mhmoe_mm.command_line.predictions import FolderLogger, identity
from mhmoe_mm.command_line.results import Results
from mhmoe_mm.command_line.resume import (
    RUNS,
    compare,
    find_checkpoint,
    newest_whole,
    read_hyper_parameters,
)
from mhmoe_mm.command_line.saved_config import SaveConfig, redacted
from mhmoe_mm.command_line.sources import Sources
from mhmoe_mm.command_line.weights import weights_path
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.storage.checkpoint_io import SealedCheckpointIO


class Command(LightningCLI):
    """Reads a command line and builds its task, data and trainer; `execute` then carries it out.

    Differs from Lightning's in what surprises: an interpolation follows later overrides, a
    checkpoint never replaces what was typed, modules' factories stay factories, results go to
    `runs/NAME/version_N`, and nothing is written by a command line that is refused.
    """

    def __init__(self, argv: Sequence[str], task: type[LightningModule]) -> None:
        self.sources = Sources(argv)
        self.started = False
        self.fresh_folders: list[Path] = []
        super().__init__(
            model_class=task,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"environment": self.sources.environment()},
            trainer_defaults={"enable_model_summary": False},
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs={
                "description": "Train, validate and test multimodal mixture-of-experts models."
            },
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # see instantiate_classes
            args=list(argv),
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        return super().init_parser(parser_mode="omegaconf+", allow_abbrev=False, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's four; what `_prepare_subcommand_kwargs` settles is no option."""
        return {
            name: skipped | {"weights_only", "verbose", "return_predictions"}
            for name, skipped in LightningCLI.subcommands().items()
        }

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument(
                "--predictions",
                type=str | None,
                default=None,
                help="Folder of the predictions, also of interrupted ones (the run's own).",
            )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str, default="unnamed", help="The run's folder under runs/."
        )
        parser.add_argument(
            "--net_changes",
            type=bool,
            default=False,
            help="Go on although the checkpoint's net was described differently.",
        )
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_lightning_class_args(FiniteGuard, "guard")
        parser.add_lightning_class_args(Preemption, "preemption")
        parser.add_lightning_class_args(Watchdog, "watchdog")
        parser.set_defaults(
            {
                "checkpoint.save_last": "link",
                "checkpoint.filename": "step-{step:06d}",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with remembering():
            self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Compare the checkpoint with what was typed; what was typed stays (Lightning would replace
        it in silence)."""
        command = self.config.subcommand
        given = self.config[command]
        if command == "predict" and not weights_path(given):
            raise ValueError(
                "Predictions are made with trained weights: give a checkpoint of the task with "
                "`--ckpt_path FILE` (or weights alone with `--model.init_from FILE`)."
            )
        if not given.get("ckpt_path"):
            return
        runs = Path(given.trainer.default_root_dir or RUNS)
        if given.ckpt_path == "auto":
            given.ckpt_path = newest_whole(runs / given.name, command == "fit")
            if given.ckpt_path is None:
                rank_zero_info(f"no checkpoint of run '{given.name}' is there: it starts afresh")
                return
            rank_zero_info(f"run '{given.name}' goes on from {given.ckpt_path}")
        checkpoint = find_checkpoint(str(given.ckpt_path), runs, given.name, command == "fit")
        given.ckpt_path = str(checkpoint)
        self._dump_config()
        model = self.config_dump["model"]
        there = read_hyper_parameters(checkpoint)
        there.pop("_instantiator", None)
        here = {"_class_path": model["class_path"], **model.get("init_args", {})}
        changed = compare(there, here) if there else []
        net = [line for line in changed if line.startswith("net.")]
        if net and not given.net_changes:
            raise ValueError(
                f"{checkpoint} holds another net: {'; '.join(net)}. "
                "Add `--net_changes true` to go on."
            )
        for line in changed:
            rank_zero_info(f"differs from {checkpoint}: {line}")

    def _dump_config(self) -> None:
        """What is stored as hyper-parameters: as Lightning has it, less the values of environment
        variables."""
        if not hasattr(self, "config_dump"):
            super()._dump_config()
            self.config_dump = redacted(self.config_dump, self.sources.environment())

    def instantiate_classes(self) -> None:
        """As Lightning's; hyper-parameters are stored as plain values, so that a checkpoint can be
        loaded without this command.

        The instantiators hold no reference to the command either: they travel with every factory
        that a module keeps, into copies of the module and into data workers.
        """
        self._dump_config()
        dumped = cast(LightningCLI, _Dumped(self.config_dump))
        kinds = {"model": self._model_class, "data": self._datamodule_class}
        makers = [(_InstantiatorFn(dumped, key), kind, True) for key, kind in kinds.items()]
        makers += net_makers(self.config[str(self.subcommand)].trainer.get("strategy"))
        self.config_init = self.parser.instantiate(self.config, instantiators=makers)
        self.model = self._get(self.config_init, "model")
        self.datamodule = self._get(self.config_init, "data")
        self.trainer = self.instantiate_trainer()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.pop("callbacks", None) or []
        given = [*given] if isinstance(given, list) else [given]
        config["default_root_dir"] = config.get("default_root_dir") or str(RUNS)
        command = str(self.subcommand)
        asked = self.config[command]
        predictions = asked.get("predictions")
        if predictions and config.get("logger") in (None, True):
            config["logger"] = [FolderLogger(predictions)]
        if config.get("logger") in (None, True):
            place = {
                "save_dir": config["default_root_dir"],
                "name": self._get(self.config_init, "name"),
            }
            config["logger"] = [
                CSVLogger(**place),
                TensorBoardLogger(**place, default_hp_metric=False),
            ]
        if config.get("enable_checkpointing") is False or config.get("fast_dev_run"):
            callbacks = [known for known in callbacks if not isinstance(known, ModelCheckpoint)]
        own_bar = any(isinstance(known, ProgressBar) for known in given)
        bar_wanted = config.get("enable_progress_bar") is not False
        if bar_wanted and not own_bar:
            given.append(StepBar() if sys.stdout.isatty() else ProgressLines())
        if command in ("validate", "test"):
            given.append(Results(command, weights_path(asked)))
        if command == "predict":
            given.append(PredictionWriter(predictions, self._identity))
        given.append(_Started(self))
        if config.get("strategy") == "fsdp":
            config["strategy"] = FSDP2()
        plugins = config.get("plugins") or []
        plugins = [*plugins] if isinstance(plugins, list) else [plugins]
        if not any(isinstance(known, CheckpointIO) for known in plugins):
            config["plugins"] = [*plugins, SealedCheckpointIO()]
        trainer = super()._instantiate_trainer({**config, "callbacks": given}, callbacks)
        if command == "fit":
            expect_unused_parameters(trainer)
        for logger in trainer.loggers:
            _ = logger.version  # both choose their number before either has made a folder
        folder = trainer.log_dir
        if trainer.loggers and folder and trainer.is_global_zero:
            place = Path(folder)
            self.fresh_folders = [path for path in (place, *place.parents) if not path.exists()]
        return trainer

    def _identity(self) -> dict[str, Any]:
        """What predictions depend on; see `identity`."""
        weights = weights_path(self.config["predict"])
        assert weights is not None, "see _parse_ckpt_path"
        return identity(self.config_dump, self.trainer.precision, weights, self.datamodule)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """What Lightning's trainer is called with: it runs no code of checkpoints, prints no table
        of its own, and keeps no predictions in memory."""
        own: dict[str, Any] = {"weights_only": True}
        if subcommand in ("validate", "test"):
            own["verbose"] = False
        if subcommand == "predict":
            own["return_predictions"] = False
        return {**super()._prepare_subcommand_kwargs(subcommand), **own}

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing yet: Lightning calls this while constructing; see `execute`."""

    def execute(self) -> None:
        """Fit, validate, test or predict, as the command line says."""
        total = sum(p.numel() for p in self.model.parameters())
        where = f", writing to {self.trainer.log_dir}" if self.trainer.log_dir else ""
        rank_zero_info(f"{type(self.model).__name__}: {total:,} parameters{where}")
        command = str(self.subcommand)
        super()._run_subcommand(command)
        if command != "fit" and not self.started:
            raise ValueError(
                f"There is nothing to {command}: the data have no rows for it "
                f"(data.{'val' if command == 'validate' else 'test'}), or the trainer none of them."
            )

    def withdraw(self) -> None:
        """Remove the run's folder again if this command made it and its work never began."""
        if self.fresh_folders and not self.started:
            folder, *parents = self.fresh_folders
            shutil.rmtree(folder, ignore_errors=True)
            for parent in parents:
                with suppress(OSError):  # not empty: other runs live there
                    parent.rmdir()


class _Dumped:
    """What Lightning's instantiator asks a command for: the configuration as plain values."""

    def __init__(self, config_dump: dict[str, Any]) -> None:
        self.config_dump = config_dump

    def _dump_config(self) -> None:
        """Done already."""


class _Started(Callback):
    """Tells the command that its work has begun, so that later errors are failures and not
    refusals."""

    def __init__(self, command: Command) -> None:
        super().__init__()
        self.command = command

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.command.started = True

    on_validation_start = on_test_start = on_predict_start = on_train_start
