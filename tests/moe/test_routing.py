"""What routers and backends do quickly is what the plain way does."""

import pytest
import torch

from mhmoe_mm.moe import GeluExperts, GroupedBackend, LoopBackend, routing
from mhmoe_mm.moe.backends import Form
from mhmoe_mm.moe.routing import Plan, best_experts


@pytest.mark.parametrize("experts", [2, 7, 64, 67])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_best_experts_are_those_of_topk(experts: int, k: int):
    score = torch.randn(211, experts)
    k = min(k, experts)
    assert torch.equal(best_experts(score, k), score.topk(k, dim=1).indices)


def test_experts_of_equal_scores_are_different_ones():
    assert best_experts(torch.zeros(3, 5), 2).tolist() == [[0, 1]] * 3


def test_the_entropy_of_probabilities_is_that_of_torch():
    prob = torch.cat([torch.eye(5), torch.rand(17, 5), torch.full((1, 5), 1e-42)])
    expected = torch.special.entr(prob).sum(dim=1)
    torch.testing.assert_close(routing._entropy(prob), expected, atol=1e-6, rtol=1e-6)


def leave_nan(shapes):
    """NaN in memory that is free, for the products to use again."""
    held = [torch.full(shape, torch.nan) for shape in shapes]
    del held


@pytest.mark.parametrize("block", [None, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_of_nobody_stay_out_whatever_the_memory_held(block, bias: bool, monkeypatch):
    """Where an expert has no rows and some assignments go nowhere."""
    torch.manual_seed(0)
    token = torch.randn(11, 8, requires_grad=True)
    expert = torch.tensor([0, 4, 2, 2, 5, 5, 4, 0, 5, 0, 2])
    weight = torch.where(expert < 5, torch.rand(11), 0.0).requires_grad_()
    plan = Plan(torch.arange(11), expert, weight, 1)
    found = []
    for backend in (LoopBackend(), GroupedBackend(block)):
        torch.manual_seed(1)
        experts = GeluExperts(5, 8, 12, bias=bias, backend=lambda made=backend: made)
        leave_nan((size, width) for size in range(9, 70) for width in (8, 12))
        answer = experts(token, plan)
        grads = torch.autograd.grad(answer.square().sum(), [token, weight, *experts.parameters()])
        found.append([answer, *grads])
    assert not found[0][0][expert == 5].any()
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_on_a_cpu_the_rows_of_nobody_are_zeros_for_tiny_numbers_are_slow():
    """Indices that lay there before are such numbers, as floats."""
    plan = Plan(torch.arange(11), torch.arange(11) % 2, torch.rand(11), 1)
    weight = torch.randn(2, 8, 8)
    seen = []

    def of_rows(row, rows):
        row.register_hook(seen.append)
        leave_nan([row.shape] * 50)
        seen.append(rows.product(row, weight))
        return seen[0]

    token = torch.randn(11, 8, requires_grad=True)
    answer = GroupedBackend(block=8)(token, plan, 2, Form(of_rows, lambda: None))
    leave_nan([seen[0].shape] * 50)
    answer.sum().backward()
    for rows in seen:
        assert rows.shape[0] > 16  # two experts' blocks of 8, and nobody's behind them
        assert rows[:11].any()
        assert not rows[16:].any()


@pytest.mark.parametrize("nowhere", [0, 3])
def test_a_token_that_goes_nowhere_may_hold_anything(nowhere: int):
    torch.manual_seed(0)
    token = torch.randn(5, 8)
    token[nowhere] = torch.nan
    expert = torch.tensor([1, 0, 1, 2, 1])
    expert[nowhere] = 3
    plan = Plan(torch.arange(5), expert, torch.where(expert < 3, 0.5, 0.0), 1)
    experts = GeluExperts(3, 8, 12)
    answer = experts(token.requires_grad_(), plan)
    grads = torch.autograd.grad(answer.square().sum(), [token, *experts.parameters()])
    assert all(grad.isfinite().all() for grad in (answer, *grads))


@pytest.mark.parametrize(("tiles", "on_cpu"), [(False, 8), (True, 32)])
def test_blocks_are_large_only_where_products_are_made_of_tiles(tiles, on_cpu, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: tiles)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    backend = GroupedBackend()
    assert backend.block_of(torch.bfloat16, cpu) == on_cpu
    assert backend.block_of(torch.bfloat16, gpu) == 32
    assert backend.block_of(torch.float32, cpu) == 8
    assert GroupedBackend(5).block_of(torch.bfloat16, gpu) == 5
