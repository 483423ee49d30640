"""Measurements: programs that print timings and assert none."""
