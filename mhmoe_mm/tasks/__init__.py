"""LightningModules, one file per task."""
