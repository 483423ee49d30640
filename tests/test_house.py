"""Importing is quiet: nothing is printed, set or started."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib, json, os, pkgutil, random, sys, threading, warnings
import torch, lightning.pytorch, timm, webdataset, torchmetrics, matplotlib, tensorboard

def state():
    return {
        "environment": dict(os.environ),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "running": threading.active_count(),
        "precision": torch.get_float32_matmul_precision(),
        "dtype": str(torch.get_default_dtype()),
        "random": hash(random.getstate()),
        "torch random": torch.get_rng_state().sum().item(),
        "filters": len(warnings.filters),
        "path": sys.path,
        "backend": matplotlib.rcParams._get_backend_or_none(),
    }

def names(package):
    yield package
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__"):
            yield found.name

before = json.dumps(state())
for package in ("mhmoe_mm", "datamodules"):
    for name in names(package):
        importlib.import_module(name)
after = json.dumps(state())
assert before == after, f"{before}\\n{after}"
"""


def test_importing_the_library_prints_nothing_and_changes_nothing(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
