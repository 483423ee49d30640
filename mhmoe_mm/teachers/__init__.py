"""Frozen networks whose features of patches a tokenizer is to keep; named by class_path."""
