"""The tokenizer of the data modules' tests."""

from tests.datamodules.conftest import tokenizer_path

__all__ = ["tokenizer_path"]
