"""What tests of every part share."""

import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.datamodules.conftest import tokenizer_path

if TYPE_CHECKING:
    from tests.browser import Browser

__all__ = ["tokenizer_path"]


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """A headless Chromium, started once; see `tests.browser`."""
    from tests.browser import Browser, find_chromium  # selenium is not for every test

    if (found := find_chromium()) is None:
        pytest.skip("no chromium and chromedriver here: install Debian's chromium-driver")
    browser = Browser(*found)
    yield browser
    browser.close()


@pytest.fixture(autouse=True)
def _no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch):
    """Lightning's `seed_everything` leaves its seed in the environment, where every later Trainer
    of this process, and every rank that a test starts, would find it and set it again.
    """
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """What Lightning tells people, also where an import has cut its logger off from the root."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level("INFO", name)
    return caplog


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: str) -> Callable[[str], Any]:
    """trained(name) -> a tiny checkpoint of a task, `tests.trained.Trained`; made once."""
    from tests.trained import make  # what it imports is not for every test

    return cache(lambda name: make(name, tmp_path_factory.mktemp(name), tokenizer_path))


@pytest.fixture(scope="session")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `tests.language.train_language_model`; made once."""
    from tests.language import train_language_model

    return train_language_model(tmp_path_factory.mktemp("language"))
