"""What a backend that fuses must do: NativeBackend, or with FUSED=triton TritonBackend on a CUDA
device or, with TRITON_INTERPRET=1, in an interpreter.

`test_native.py` and `test_triton.py` run this file in processes of its own: an interpreted kernel
cannot be undone, and neither kernels nor compilers like the shape checks of the other tests.
"""

import os
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from mhmoe_mm.models.flops import Flops
from mhmoe_mm.moe import (
    ExpertChoiceRouter,
    GeluExperts,
    GroupedBackend,
    LoopBackend,
    MHMoE,
    NativeBackend,
    Plan,
    SwiGLUExperts,
)
from mhmoe_mm.moe.backend_triton import TritonBackend
from mhmoe_mm.moe.expert_parallel import ExpertParallel

TRITON = os.environ.get("FUSED") == "triton"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if TRITON and not INTERPRETED else "cpu"
Fused = TritonBackend if TRITON else NativeBackend
COMPILED = pytest.param(
    "inductor", marks=pytest.mark.skipif(INTERPRETED, reason="not for an interpreter")
)
HALF = pytest.mark.skipif(not TRITON, reason="no processor multiplies float16 here")
TOKENS, WIDTH, EXPERTS, HIDDEN = 13, 37, 5, 67
EMPTY = 2
"""An expert that nobody chooses."""
FORMS = {
    "gelu": partial(GeluExperts, hidden=HIDDEN),
    "gelu_no_bias": partial(GeluExperts, hidden=HIDDEN, bias=False),
    "swiglu": partial(SwiGLUExperts, hidden=HIDDEN),
    "swiglu_bias": partial(SwiGLUExperts, hidden=HIDDEN, bias=True),
}


@pytest.fixture(autouse=True)
def _memory_that_was_not_written_is_nan():
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def experts_of(form: str, dtype=torch.float32):
    torch.manual_seed(1)
    return FORMS[form](EXPERTS, WIDTH).to(DEVICE, dtype)


def fixed_plan(top_k=2) -> Plan:
    """Every token to `top_k` experts, some of them nowhere: both of token 0."""
    torch.manual_seed(2)
    expert = torch.randint(0, EXPERTS + 1, (TOKENS * top_k,))
    expert[expert == EMPTY] = EXPERTS
    expert[:top_k] = EXPERTS
    weight = torch.where(expert < EXPERTS, torch.rand(len(expert)), 0.0)
    token = torch.arange(TOKENS).repeat_interleave(top_k)
    return Plan(token.to(DEVICE), expert.to(DEVICE), weight.to(DEVICE), top_k)


def chosen_plan() -> Plan:
    """Experts choose: any number for a token, in the order of experts; some have none."""
    torch.manual_seed(3)
    token = torch.cat([torch.randperm(TOKENS - 3)[:7] + 2 for _ in range(EXPERTS)])
    expert = torch.arange(EXPERTS).repeat_interleave(7)
    return Plan(token.to(DEVICE), expert.to(DEVICE), torch.rand(35, device=DEVICE), 0)


def run(experts, backend, plan: Plan, token):
    """The answer and the gradients of tokens, weights of the plan and parameters."""
    experts.backend = backend
    token = token.clone().requires_grad_()
    plan = plan._replace(weight=plan.weight.clone().requires_grad_())
    answer = experts(token, plan)
    up = torch.linspace(-1, 1, answer.numel(), device=DEVICE).view_as(answer).to(answer.dtype)
    grads = torch.autograd.grad(answer, [token, plan.weight, *experts.parameters()], up)
    return answer, *grads


def tokens(dtype=torch.float32):
    torch.manual_seed(4)
    return torch.randn(TOKENS, WIDTH).to(DEVICE, dtype)


def assert_all_close(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("form", FORMS)
def test_the_loop_is_followed_and_what_goes_nowhere_is_never_read(form):
    experts, plan, token = experts_of(form), fixed_plan(), tokens()
    token[0] = torch.nan  # goes nowhere; rows that pad blocks would copy it
    expected = run(experts, LoopBackend(), plan, token)
    found = run(experts, Fused(16), plan, token)
    assert_all_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not found[0][0].any()
    assert all(not grad[EMPTY].any() for grad in found[3:])
    assert all(grad.any() for grad in found[1:])


def test_tokens_with_any_number_of_experts_follow_the_loop():
    experts, plan, token = experts_of("gelu"), chosen_plan(), tokens()
    expected = run(experts, LoopBackend(), plan, token)
    assert_all_close(run(experts, Fused(32), plan, token), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("width", "hidden", "block"), [(3, 131, 16), (67, 2, 64), (64, 128, 128)])
def test_any_widths_and_blocks_follow_the_loop(width, hidden, block):
    torch.manual_seed(5)
    experts = SwiGLUExperts(EXPERTS, width, hidden=hidden, bias=True).to(DEVICE)
    token, plan = torch.randn(TOKENS, width, device=DEVICE), fixed_plan(3)
    expected = run(experts, LoopBackend(), plan, token)
    found = run(experts, Fused(block), plan, token)
    assert_all_close(found, expected, atol=2e-5, rtol=1e-4)


def test_when_nobody_goes_anywhere_everything_is_zero():
    experts, plan = experts_of("gelu"), fixed_plan()
    nowhere = plan._replace(expert=torch.full_like(plan.expert, EXPERTS), weight=0 * plan.weight)
    assert not any(each.any() for each in run(experts, Fused(16), nowhere, tokens()))


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("gelu", torch.bfloat16),
        ("swiglu_bias", torch.bfloat16),
        pytest.param("swiglu_bias", torch.float16, marks=HALF),
    ],
)
def test_low_precision_is_as_near_to_float32_as_the_loop_is(form, dtype):
    """The interpreter cuts what does not fit into bfloat16 off, where a GPU rounds."""
    share = 4 if INTERPRETED and dtype == torch.bfloat16 else 1.5
    experts, plan, token = experts_of(form), fixed_plan(), tokens(dtype)
    exact = run(experts, LoopBackend(), plan, token.float())
    experts = experts.to(dtype)
    theirs, ours = (run(experts, b, plan, token) for b in (LoopBackend(), Fused(16)))
    for one, loop, true in zip(ours, theirs, exact, strict=True):
        bound = share * (loop.float() - true).norm() + 1e-3 * true.norm()
        assert (one.float() - true).norm() <= bound


def test_it_multiplies_the_rows_that_come_from_other_ranks(tmp_path):
    experts, plan, token = experts_of("gelu"), fixed_plan(), tokens()
    expected = run(experts, LoopBackend(), plan, token)
    kind = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(kind, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        spread = ExpertParallel(Fused(16), dist.new_group([0]))
        found = run(experts, spread, plan, token)
    finally:
        dist.destroy_process_group()
    assert_all_close(found, expected, atol=2e-5, rtol=1e-4)


def layer_of(backend, router=None) -> MHMoE:
    torch.manual_seed(6)
    experts = partial(SwiGLUExperts, hidden=19, backend=backend)
    layer = MHMoE(42, 3, EXPERTS, experts=experts, **({"router": router} if router else {}))
    return layer.to(DEVICE)


def step(layer, through=None):
    torch.manual_seed(7)
    x = torch.randn(2, 5, 42, device=DEVICE, requires_grad=True)
    keep = torch.arange(5, device=DEVICE) < torch.tensor([[5], [3]], device=DEVICE)
    y, load = through(x, keep) if through is not None else layer(x, keep)
    up = torch.linspace(-1, 1, y.numel(), device=DEVICE).view_as(y)
    loss = (y * up).sum() + load.balance
    return y, *torch.autograd.grad(loss, [x, *layer.parameters()])


@pytest.mark.parametrize("router", [None, ExpertChoiceRouter])
def test_a_multi_head_layer_is_the_same_with_either_backend(router):
    expected = step(layer_of(LoopBackend, router))
    assert_all_close(step(layer_of(partial(Fused, 16), router)), expected,
                     atol=2e-5, rtol=1e-4)  # fmt: skip


def test_autocast_computes_in_its_precision_and_weights_get_gradients_in_theirs():
    layers = [layer_of(GroupedBackend), layer_of(partial(Fused, 16))]
    with torch.autocast(DEVICE, torch.bfloat16):
        expected, found = (step(layer) for layer in layers)
    assert found[0].dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in found[1:])
    for one, other in zip(found, expected, strict=True):
        assert (one - other).float().norm() <= 0.02 * other.float().norm()


def test_recomputation_and_a_second_run_give_the_same_bits():
    layer = layer_of(partial(Fused, 16))
    first, second = step(layer), step(layer)
    again = step(layer, lambda *given: checkpoint(layer, *given, use_reentrant=False))
    for one, two, three in zip(first, second, again, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_without_gradients_nothing_is_kept_and_the_answer_is_the_same():
    experts, plan, token = experts_of("swiglu"), fixed_plan(), tokens()
    experts.backend = Fused(16)
    answer = experts(token, plan)
    with torch.no_grad():
        assert torch.equal(experts(token, plan), answer)


def kept(experts, backend, plan, token) -> int:
    """Numbers that a forward keeps for its backward, weights and indices left out."""
    own = {p.data_ptr() for p in experts.parameters()} | {token.data_ptr()}
    sizes = {}

    def keep(tensor):
        if tensor.is_floating_point() and tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    experts.backend = backend
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = experts(token, plan)
    assert answer.requires_grad
    return sum(sizes.values())


def test_half_of_what_a_grouped_layer_keeps_is_kept():
    torch.manual_seed(8)
    experts = GeluExperts(EXPERTS, 32, hidden=64, bias=False).to(DEVICE)  # no padded columns
    token, plan = torch.randn(TOKENS, 32, device=DEVICE), fixed_plan()
    grouped, fused = (kept(experts, b(16), plan, token) for b in (GroupedBackend, Fused))
    assert 0 < fused < 0.5 * grouped


def test_operations_are_counted_as_those_of_the_grouped_backend():
    experts, plan, totals = SwiGLUExperts(EXPERTS, 32, hidden=64).to(DEVICE), fixed_plan(), []
    token = torch.randn(TOKENS, 32, device=DEVICE, requires_grad=True)
    for backend in (GroupedBackend(16), Fused(16)):
        experts.backend = backend
        with Flops() as flops:
            experts(token, plan).sum().backward()
        totals.append(flops.total)
    assert totals[1] == totals[0] > 0


@pytest.mark.parametrize("compiler", ["aot_eager", COMPILED])
def test_a_layer_compiles_as_one_graph_with_the_same_numbers(compiler):
    layer = layer_of(partial(Fused, 16))
    expected = step(layer)
    torch.compiler.reset()
    found = step(layer, torch.compile(layer, fullgraph=True, backend=compiler))
    assert_all_close(found, expected, atol=2e-5, rtol=1e-4)
