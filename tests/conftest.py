"""What tests of every part share."""

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.datamodules.conftest import tokenizer_path

__all__ = ["tokenizer_path"]


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
