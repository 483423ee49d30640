"""A watchdog watches a fit and nothing after it; that it bites is in `tests/reliability`."""

import threading

import pytest
from lightning.pytorch import Callback, Trainer

from mhmoe_mm.callbacks.watchdog import THREAD, Watchdog
from tests.callbacks.standin import Watched, numbers
from tests.tasks.training import QUIET


def watching() -> int:
    return sum(thread.name == THREAD and thread.is_alive() for thread in threading.enumerate())


class Fails(Callback):
    """Raises in one hook, and looks whether somebody watches."""

    def __init__(self, hook: str):
        self.watched = -1

        def fail(*_, **__) -> None:
            self.watched = watching()
            raise RuntimeError("broken")

        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["setup", "on_train_start", "on_train_batch_end"])
def test_after_a_fit_that_failed_nobody_watches(hook):
    before, fails = watching(), Fails(hook)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[Watchdog(0.5), fails])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(Watched(lambda stage, number: {}), numbers(3))
    assert fails.watched == before + 1
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(timeout=5)
    assert watching() == 0


def test_after_a_fit_nobody_watches():
    Trainer(**QUIET, max_epochs=1, callbacks=[Watchdog(0.5)]).fit(
        Watched(lambda stage, number: {}), numbers(3)
    )
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(timeout=5)
    assert watching() == 0
