"""Makes tokenizers: from captions of shards, from text files, from SentencePiece models."""

from tools.train_tokenizer.cli import main

__all__ = ["main"]
