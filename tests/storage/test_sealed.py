"""A sealed checkpoint is an ordinary one whose every bit is held to."""

import random
from pathlib import Path

import pytest
import torch

from mhmoe_mm.storage.sealed import Damaged, read_sealed, save_sealed, verify_sealed

CONTENT = {"weight": torch.arange(911.0), "plain": {"steps": [3, "five"], "rate": 0.1}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_sealed(CONTENT, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


@pytest.mark.parametrize("mmap", [False, True])
def test_it_reads_as_any_checkpoint(path: Path, mmap: bool):
    for found in (read_sealed(path, mmap=mmap), torch.load(path, weights_only=True, mmap=mmap)):
        assert found.keys() == CONTENT.keys()
        assert found["plain"] == CONTENT["plain"]
        assert torch.equal(found["weight"], CONTENT["weight"])
    assert verify_sealed(path)


def test_what_torch_itself_saved_is_read_and_has_no_seal(path: Path):
    torch.save(torch.load(path, weights_only=True), path)
    assert not verify_sealed(path)
    assert torch.equal(read_sealed(path)["weight"], CONTENT["weight"])


def test_every_changed_bit_is_found(path: Path):
    whole, draw = path.read_bytes(), random.Random(0)
    last = range(len(whole) - 250, len(whole))  # the directory of the archive and the seal
    for place in [*last, *draw.sample(range(len(whole)), 300)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=r"a\.ckpt"):
            verify_sealed(path)


def test_every_cut_is_found(path: Path):
    whole = path.read_bytes()
    for length in [0, 1, 63, *random.Random(1).sample(range(len(whole)), 100), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged, match=r"a\.ckpt"):
            verify_sealed(path)


class Harmful:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_nothing_in_it_is_run(tmp_path: Path):
    save_sealed({"a": Harmful(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt is not a checkpoint that can be read safely"):
        read_sealed(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()
