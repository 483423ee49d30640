"""A callback that shows which experts read the patches of images and the words of texts."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from mhmoe_mm.callbacks.examples_picture import draw_patches, draw_words
from mhmoe_mm.callbacks.logged_images import log_image
from mhmoe_mm.callbacks.routing_record import RoutingRecorder
from mhmoe_mm.callbacks.routing_rows import IMAGE, TEXT, RoutedRow, Turns, take_rows
from mhmoe_mm.callbacks.routing_tokens import RoutingChunk, chunks
from mhmoe_mm.callbacks.run_folder import run_folder
from mhmoe_mm.inputs.spelling import Spelling, spelling_of
from mhmoe_mm.moe.sparse_layers import described
from mhmoe_mm.tasks.base import Task


class ExpertExamples(Callback):
    """Draws the routing of a few rows of every validation's, or test's, first batch that has loads.

    - `<log_dir>/experts/patches-<stage>-<step>.png`: images, and over them how many different
      experts read each patch, and which one each layer's first head chose first.
    - `<log_dir>/experts/words-<stage>-<step>.png`: texts, each token in the colour of how many
      different experts read it, with the experts that the last layer's heads chose first below it.
    - both as images in TensorBoard and other loggers that take images, `val/experts/patches` and
      `val/experts/words`.

    The rows are those of rank 0's batch, so of the same samples as long as evaluations read
    the same order: what changes from picture to picture is the training. That batch runs uncompiled
    and copies every layer's plan to the host; all others are not touched.

    Args:
        images, sentences: how many are drawn, at most; 0 for none.
    """

    def __init__(self, images: int = 4, sentences: int = 8):
        if min(images, sentences) < 0:
            raise ValueError(
                f"images and sentences are numbers, 0 or more, got {images} and {sentences}."
            )
        self.images, self.sentences = images, sentences
        self._folder: Path | None = None
        self._recorder: RoutingRecorder | None = None
        self._spelling: Spelling | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = run_folder(trainer)  # asks every rank
        self._spelling = spelling_of(getattr(trainer, "datamodule", None)) or self._spelling

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._folder is None or trainer.sanity_checking or not isinstance(pl_module, Task):
            return
        if described(pl_module.net):
            self._recorder = RoutingRecorder(pl_module.net)
            self._recorder.start()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._recorder is None:
            return
        forwards = self._recorder.take()
        if not forwards or not isinstance(outputs, dict) or not outputs.get("loads"):
            return  # captions were written, or the step only fills this rank up
        self._stop()
        if trainer.is_global_zero and isinstance(pl_module, Task):
            found = chunks(forwards, batch, pl_module, self._spelling)
            self._draw(trainer, pl_module, found, "val" if not trainer.testing else "test")

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    on_test_epoch_end = on_validation_epoch_end

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = None

    def _draw(self, trainer: Trainer, task: Task, found: list[RoutingChunk], stage: str) -> None:
        assert self._folder is not None
        experts = {layer.name: layer.num_experts for layer in described(task.net)}
        title = f"{stage}, step {trainer.global_step}"
        folder = self._folder / "experts"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{stage}-{trainer.global_step:08d}.png"
        if images := self._rows(found, IMAGE, self.images):
            path = folder / f"patches-{name}"
            draw_patches(images, experts, f"Experts of patches, {title}", path)
            log_image(trainer, f"{stage}/experts/patches", path)
        if self._spelling is None:
            return
        if texts := self._rows(found, TEXT, self.sentences, self._spelling.eos):
            path = folder / f"words-{name}"
            draw_words(texts, self._spelling, experts, f"Experts of words, {title}", path)
            log_image(trainer, f"{stage}/experts/words", path)

    @staticmethod
    def _rows(
        found: list[RoutingChunk], modality: int, most: int, end: int | None = None
    ) -> list[RoutedRow]:
        turns = Turns[RoutedRow](most)
        for chunk in found:
            take_rows(turns, chunk, modality, end)
        return turns.in_turn()[:most]
