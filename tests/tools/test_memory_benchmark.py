"""A layer takes the memory that the formula says, which hardly depends on the number of experts."""

import json
from dataclasses import replace

import pytest
import torch

from tools.benchmarks import memory
from tools.benchmarks.cases import CASES, Case, case
from tools.benchmarks.engines import OURS, made

SMALL = [replace(each, tokens=509) for each in CASES]
BLOCK = 16


def taken(shape: Case, dtype: torch.dtype) -> int:
    return memory.peak(made(OURS, shape, BLOCK).to(dtype), shape, dtype, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", SMALL, ids=lambda c: c.name)
def test_a_step_takes_at_most_what_the_formula_says_and_three_tenths(shape: Case, dtype):
    formula = memory.expected(shape, dtype, "cpu", BLOCK)
    assert formula / 1.3 < taken(shape, dtype) < 1.3 * formula


def test_beyond_alignment_and_gradients_the_number_of_experts_takes_nothing():
    few, many = case(4099, 32, 2, 4, 2, 64), case(4099, 32, 2, 64, 2, 64)
    aligned = (64 - 4) * (BLOCK - 1) * (2 * 16 + 3 * 64) * 4
    gradients = (64 - 4) * 2 * 16 * 64 * 4
    scores = (64 - 4) * 4099 * 2 * 3 * 4
    more = taken(many, torch.float32) - taken(few, torch.float32)
    assert 0 < more < aligned + gradients + scores + 4096


def test_the_command_prints_it_beside_peers_and_writes_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.benchmarks.options.CASES", [case(64, 24, 2, 3, 2, 12)])
    path = tmp_path / "memory.json"
    options = ["--dtype", "fp32", "--experts", "3", "5", "--peers", "one-hot", "--json", str(path)]
    assert memory.main(options) == 0
    told = capsys.readouterr().out
    assert "ours / formula" in told
    assert "triton is left out: it needs a CUDA device" in told
    rows = json.loads(path.read_text())
    assert [row["experts"] for row in rows] == [3, 5]
    assert all(row["one-hot"] > row[OURS] > 0 for row in rows)


def test_the_memory_of_a_whole_process_is_of_one_case(capsys):
    with pytest.raises(SystemExit):
        memory.main(["--resident", "--case", "d512"])
    assert "--resident is of one case" in capsys.readouterr().err
