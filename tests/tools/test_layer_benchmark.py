"""The peers of the layer benchmark do the same work, and its table says what was measured."""

import json

import pytest
import torch
from torch import nn

from mhmoe_mm.moe import LoopBackend, MHMoE, SparseMoE
from mhmoe_mm.moe.backend_triton import TritonBackend
from tools.benchmarks import engines, layer, peers
from tools.benchmarks.cases import Case, case

CASES = [case(23, 20, 1, 5, 2, 12), case(23, 24, 2, 3, 2, 12), case(23, 24, 2, 5, 1, 20)]


@pytest.fixture
def ours(request):
    """Our layer of the case, one expert after the other: the oracle."""
    torch.manual_seed(0)
    return engines.sparse(request.getfixturevalue("shape"), LoopBackend())


def given(found: peers.Heads, ours: nn.Module) -> peers.Heads:
    """The peer with our layer's weights."""
    if isinstance(ours, MHMoE):
        for name in ("head_proj", "merge_proj"):
            getattr(found, name).load_state_dict(getattr(ours, name)[0].state_dict())
    inner = ours.moe if isinstance(ours, MHMoE) else ours
    assert isinstance(inner, SparseMoE)
    mine, theirs = inner.experts, found.inner
    with torch.no_grad():
        theirs.router.weight.copy_(inner.router.scorer.weight)
        if isinstance(theirs, peers.OneHot):
            theirs.w_in.copy_(mine.w_in)
            theirs.w_out.copy_(mine.w_out)
        else:
            theirs.experts.up_proj.copy_(mine.w_in.mT)
            theirs.experts.down_proj.copy_(mine.w_out.mT)
    return found


@pytest.mark.parametrize("name", ["one-hot", "hf-grouped", "hf-batched", "hf-eager"])
@pytest.mark.parametrize("shape", CASES, ids=lambda c: c.name)
def test_a_peer_with_our_weights_answers_as_we_do(shape: Case, name: str, ours):
    x = torch.randn(1, shape.tokens, shape.shape.dim, requires_grad=True)
    found = given(peers.peer(name, shape), ours)
    expected, answer = ours(x)[0], found(x)
    torch.testing.assert_close(answer, expected)
    up = torch.randn_like(x)
    grads = [torch.autograd.grad(y, x, up)[0] for y in (expected, answer)]
    torch.testing.assert_close(grads[1], grads[0])


def test_every_peer_that_is_installed_trains_its_experts():
    shape = case(peers.SEQUENCE, 20, 1, 5, 2, 12)
    for name in peers.installed():
        found = peers.peer(name, shape)
        found(torch.randn(1, shape.tokens, 20)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in found.parameters()), name


def test_on_a_gpu_our_layer_is_measured_with_either_backend():
    assert engines.ours("cuda:1") == [engines.OURS, engines.TRITON]
    layer = engines.made(engines.TRITON, CASES[0], 16)
    assert isinstance(layer, SparseMoE)
    assert isinstance(layer.experts.backend, TritonBackend)


@pytest.mark.parametrize("name", ["one-hot", "lucidrains"])
def test_peers_with_a_capacity_lose_next_to_nothing(name: str):
    """Else they would be spared part of the work: lucidrains' own room drops three in eight."""
    if name not in peers.installed():
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    found = peers.peer(name, case(peers.SEQUENCE, 20, 2, 8, 2, 12)).inner
    row = torch.randn(1, 2 * peers.SEQUENCE, 10)
    if isinstance(found, peers.Lucidrains):
        combine = found.moe.gate(row)[1]
        carried = (combine > 0).sum()
    else:
        assert isinstance(found, peers.OneHot)
        expert, _ = found.router(row[0])
        room = peers.capacity_of(2 * peers.SEQUENCE, 2, 8)
        carried = torch.bincount(expert.flatten(), minlength=8).clamp(max=room).sum()
    assert carried > 0.95 * 2 * row.shape[1]


def test_what_would_not_fit_is_refused_with_its_size():
    with pytest.raises(peers.Unfit, match=r"a tensor of 9\.0 GB"):
        peers.peer("one-hot", case(32768, 64, 1, 8, 2, 64))
    with pytest.raises(peers.Unfit, match="top-2 only"):
        peers.peer("lucidrains", CASES[2])


def test_the_command_prints_ratios_and_reasons_and_writes_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.benchmarks.options.CASES", CASES)
    options = ["--dtype", "fp32", "--device", "cpu", "--repeats", "2", "--clock", "cpu"]
    files = ["--json", str(tmp_path / "a.json"), "--png", str(tmp_path / "a.png")]
    chosen = ["--peers", "one-hot", "lucidrains"]
    assert layer.main([*options, *files, *chosen]) == 0
    told = capsys.readouterr().out
    assert "one-hot x" in told
    assert "triton is left out: it needs a CUDA device" in told
    assert f"{CASES[2].name}, lucidrains: top-2 only" in told
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["case"] for row in rows] == [c.name for c in CASES]
    assert all(row["dense"]["ms"] > 0 and row["ours"]["ms"] > 0 for row in rows)
    assert rows[2]["lucidrains"] == {"reason": "top-2 only"}
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_case_is_named_with_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        layer.main(["--case", "d9"])
    assert "no case is called 'd9'; there are T4096-d512-h1-E8-k1-f2048" in capsys.readouterr().err
