"""What TritonBackend must do beyond `fused_cases.py`: its tiles, and CUDA graphs."""

import pytest
import torch

from mhmoe_mm.moe import LoopBackend, SwiGLUExperts, triton_kernels
from mhmoe_mm.moe.backend_triton import TritonBackend
from mhmoe_mm.moe.triton_tuning import HEAVY, OUTER, PRODUCT
from tests.moe.fused_cases import (  # noqa: F401 the fixture is used as it is there
    DEVICE,
    EXPERTS,
    INTERPRETED,
    TOKENS,
    _memory_that_was_not_written_is_nan,
    assert_all_close,
    experts_of,
    fixed_plan,
    run,
    tokens,
)

gpu = pytest.mark.skipif(INTERPRETED, reason="not for an interpreter")


@pytest.mark.parametrize("number", [3, 4])
def test_tiles_of_any_size_follow_the_loop(number, monkeypatch):
    for name, configs in (
        ("first_kernel", PRODUCT),
        ("rows_kernel", PRODUCT),
        ("first_grad_kernel", HEAVY),
        ("weight_grad_kernel", OUTER),
    ):
        chosen = configs[number % len(configs)]
        monkeypatch.setattr(getattr(triton_kernels, name), "configs", [chosen])
    torch.manual_seed(9)
    experts = SwiGLUExperts(3, 131, hidden=137, bias=True).to(DEVICE)
    token, plan = torch.randn(TOKENS, 131, device=DEVICE), fixed_plan()
    plan = plan._replace(expert=plan.expert.clamp(max=3))
    expected = run(experts, LoopBackend(), plan, token)
    assert_all_close(run(experts, TritonBackend(32), plan, token), expected, atol=2e-5, rtol=1e-4)


@gpu
def test_after_the_tiles_were_timed_the_loop_is_still_followed():
    torch.use_deterministic_algorithms(False)
    triton_kernels.first_kernel.cache.clear()
    experts, plan, token = experts_of("swiglu_bias", torch.bfloat16), fixed_plan(), tokens()
    expected = run(experts, LoopBackend(), plan, token.bfloat16())
    found = run(experts, TritonBackend(16), plan, token.bfloat16())
    assert triton_kernels.first_kernel.cache
    assert_all_close(found, expected, atol=0.03, rtol=0.05)


@gpu
def test_a_training_step_is_captured_in_a_cuda_graph_and_follows_new_tokens():
    experts, plan = experts_of("gelu").requires_grad_(), fixed_plan()
    experts.backend = TritonBackend(16)
    token = tokens().requires_grad_()

    def both():
        answer = experts(token, plan)
        return answer, *torch.autograd.grad(answer.square().sum(), [token, *experts.parameters()])

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # tuned before the capture
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both()
    with torch.no_grad():
        token.copy_(torch.randn_like(token))
        plan.expert[2:].copy_(plan.expert[2:].flip(0))
        plan.weight[2:].copy_(plan.weight[2:].flip(0))
    graph.replay()
    assert_all_close([each.clone() for each in found], both())
