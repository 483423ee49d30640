"""What tests of every part share."""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

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


@pytest.fixture(scope="module", autouse=True)
def _random_numbers_of_its_own() -> None:
    """Every file of tests begins with the same random numbers, whatever ran in this process before;
    what it trains once for all its tests then comes out the same.
    """
    seed_all()


def seed_all() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


@contextmanager
def random_numbers_apart() -> Iterator[None]:
    """For what is made once for several files: always from the same random numbers, and those of
    the file that happens to be the first go on as if it had not been made.
    """
    plain, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        seed_all()
        yield
    random.setstate(plain)
    np.random.set_state(numbers)


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

    @cache
    def made(name: str) -> Any:
        with random_numbers_apart():
            return make(name, tmp_path_factory.mktemp(name), tokenizer_path)

    return made


@pytest.fixture(scope="session")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `tests.language.train_language_model`; made once."""
    from tests.language import train_language_model

    with random_numbers_apart():
        return train_language_model(tmp_path_factory.mktemp("language"))
