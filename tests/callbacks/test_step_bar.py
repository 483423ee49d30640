"""The live bar says where training is, in steps."""

import io

from lightning.pytorch import Trainer

from mhmoe_mm.callbacks.step_bar import StepBar
from tests.tasks.batches import batch
from tests.tasks.test_masked_pretraining import QUIET, loader, task


def shown_by(**options) -> str:
    bar, out = StepBar(), io.StringIO()
    bar._console_kwargs = {"file": out, "force_terminal": True, "width": 200}
    trainer = Trainer(callbacks=[bar], **QUIET | {"enable_progress_bar": True} | options)
    trainer.fit(task(), loader([batch()] * 3))
    return out.getvalue()


def test_a_run_limited_by_steps_shows_the_step_of_how_many_and_no_epoch_limit():
    shown = shown_by(max_steps=5)
    assert "step: 5/5" in shown
    assert "Epoch 1 " in shown
    assert "-2" not in shown
    assert "v_num" not in shown


def test_a_run_limited_by_epochs_shows_the_epoch_of_how_many():
    shown = shown_by(max_epochs=2)
    assert "Epoch 1/1" in shown
    assert "step: 6" in shown
