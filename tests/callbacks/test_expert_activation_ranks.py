import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_on_two_ranks(module: str, folder: Path, limit_s: int = 120) -> str:
    """Start a module under torchrun, and end the whole group if it is not done in time."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    process = subprocess.Popen(
        [sys.executable, *launch, module, str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{module} was not done in {limit_s} s")
    assert process.returncode == 0, output
    return output


@pytest.mark.dist
def test_two_ranks_that_see_different_layers_write_one_exact_sum(tmp_path):
    run_on_two_ranks("tests.callbacks.two_ranks", tmp_path)
    text = (tmp_path / "experts.jsonl").read_text()
    events = [json.loads(line) for line in text.splitlines()]
    found = [
        (e["stage"], e["step"], e["layer"], kind, stats["count"], stats["tokens"])
        for e in events
        for kind, stats in e["kinds"].items()
    ]
    # Batches 0 to 5 in training, 0 to 3 in validation; rank 1 alone knows the layer `odd`.
    assert found == [
        ("train", 2, "both", "image", [0 + 1 + 2 + 3, 4, 0], 10),
        ("train", 2, "odd", "text", [0, 0, 14, 1 + 3, 0], 18),
        ("val", 3, "both", "image", [0 + 1 + 2 + 3, 4, 0], 10),
        ("val", 3, "odd", "text", [0, 0, 14, 1 + 3, 0], 18),
        ("train", 3, "both", "image", [4 + 5, 2, 0], 11),
        ("train", 3, "odd", "text", [0, 0, 7, 5, 0], 12),
    ]
