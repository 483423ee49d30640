"""Builds the token files of language modelling from plain text, JSON lines and parquet."""
