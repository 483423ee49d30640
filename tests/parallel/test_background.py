"""What ranks write while training goes on is what they write at once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mhmoe_mm.callbacks.checkpoints import LAST
from mhmoe_mm.storage.checkpoint_io import TRAINING, read_any
from tests.ranks import run_on_two_ranks


def tensors(content: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All of them, by their place."""
    if isinstance(content, torch.Tensor):
        return {name: content}
    if not isinstance(content, dict | list):
        return {}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return {key: t for k, item in items for key, t in tensors(item, f"{name}.{k}").items()}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_state_of_the_step_is_written_though_training_goes_on(tmp_path: Path):
    run_on_two_ranks("tests.parallel.background", tmp_path, limit_s=480)
    layouts = sorted(path.name for path in tmp_path.iterdir())
    assert layouts == ["ddp", "one file", "shards", "shards, ep 2"]
    for layout in layouts:
        for step in (2, 4):
            one, other = (
                read_any(tmp_path / layout / name / f"step={step}.ckpt")
                for name in ("at once", "beside")
            )
            assert one["global_step"] == other["global_step"] == step
            assert one.keys() == other.keys() >= {TRAINING, "optimizer_states"}
            expected, found = tensors(one), tensors(other)
            assert expected.keys() == found.keys()
            assert len([name for name in found if name.endswith("exp_avg")]) > 10
            assert all(found[name].equal(tensor) for name, tensor in expected.items())
        last = tmp_path / layout / "beside" / LAST
        assert last.resolve().name == "step=4.ckpt"
