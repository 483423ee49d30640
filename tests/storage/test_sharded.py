"""Folders of shards: whole, verified, harmless, and readable by one process."""

import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

from mhmoe_mm.storage.checkpoint_io import read_any
from mhmoe_mm.storage.sealed import Damaged, save_sealed
from mhmoe_mm.storage.sharded import (
    META,
    METADATA,
    is_sharded,
    load_sharded,
    read_rest,
    read_whole,
    save_sharded,
    verify_sharded,
)
from tests.storage.test_sealed import Harmful

REST = {"global_step": 7, "loops": {"fit": [1, 2.5, "three"]}}


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(
        [{"params": [net[1].weight, net[1].bias]}, {"params": net[0].parameters(), "lr": 0.5}]
    )
    net(torch.randn(2, 5)).square().sum().backward()
    optimizer.step()
    return net, optimizer


def state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return {
        "state_dict": get_model_state_dict(net),
        "optimizer_0": get_optimizer_state_dict(net, optimizer),
    }


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    save_sharded(state(*trained), REST, tmp_path / "step.ckpt")
    return tmp_path / "step.ckpt"


def test_one_process_reads_it_as_one_file(trained, folder: Path):
    net, optimizer = trained
    assert is_sharded(folder)
    found = read_any(folder)
    assert {key: found[key] for key in REST} == REST
    other = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    other.load_state_dict(found["state_dict"])
    again = torch.optim.AdamW(
        [{"params": [other[1].weight, other[1].bias]}, {"params": other[0].parameters()}]
    )
    again.load_state_dict(found["optimizer_states"][0])
    assert again.param_groups[1]["lr"] == 0.5
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(optimizer.state[one]["exp_avg"], again.state[two]["exp_avg"])
    assert list(read_any(folder, weights_alone=True)["state_dict"]) == list(found["state_dict"])


def test_it_is_loaded_in_place_and_replaced_wholly(trained, folder: Path):
    save_sharded(state(*trained), {"global_step": 8}, folder)
    weights = {name: torch.zeros_like(w) for name, w in trained[0].state_dict().items()}
    assert load_sharded({"state_dict": weights}, folder) == {"global_step": 8}
    assert all(torch.equal(weights[name], w) for name, w in trained[0].state_dict().items())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_every_changed_bit_and_every_cut_of_every_file_is_found(trained, folder: Path):
    draw = random.Random(0)
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in draw.sample(range(len(whole)), 60):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(Damaged, match=r"step\.ckpt"):
                verify_sharded(folder)
        for length in draw.sample(range(len(whole)), 20):
            file.write_bytes(whole[:length])
            with pytest.raises(Damaged, match=r"step\.ckpt"):
                verify_sharded(folder)
        file.unlink()
        weights = {"0.bias": torch.full((7,), 9.0)}
        with pytest.raises(Damaged, match=r"step\.ckpt"):
            load_sharded({"state_dict": weights}, folder)
        assert (weights["0.bias"] == 9).all()
        file.write_bytes(whole)
    verify_sharded(folder)


def test_a_failed_save_leaves_the_old_checkpoint(trained, folder: Path, monkeypatch):
    def full(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mhmoe_mm.storage.sharded.save_sealed", full)
    with pytest.raises(OSError, match="No space left"):
        save_sharded(state(*trained), {"global_step": 8}, folder)
    verify_sharded(folder)
    assert read_rest(folder) == REST


@pytest.mark.parametrize("where", [METADATA, META, "value"])
def test_nothing_in_it_is_run(trained, tmp_path: Path, where: str):
    bad, folder = Harmful(tmp_path / "ran"), tmp_path / "bad.ckpt"
    tensors = state(*trained)
    if where == "value":
        tensors["optimizer_0"]["bad"] = bad
    save_sharded(tensors, REST, folder)
    if where == METADATA:
        (folder / METADATA).write_bytes(pickle.dumps(bad))
    if where == META:
        save_sealed({"bad": bad}, folder / META)
    read = read_rest if where == META else read_whole
    with pytest.raises(ValueError, match="read safely"):
        read(folder)
    assert not (tmp_path / "ran").exists()
