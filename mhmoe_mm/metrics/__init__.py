"""Metrics as torchmetrics classes."""
