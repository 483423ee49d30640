"""TritonBackend: its cases in Triton's interpreter or on a GPU, its kernels compiled for GPUs, and
what it refuses.
"""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from mhmoe_mm.moe import BitNet, GeluExperts, GroupedBackend, MHMoE, SwiGLUExperts, backend_triton
from mhmoe_mm.moe.backend_triton import TritonBackend


def ran(*command: str, **environment: str) -> str:
    """What a Python program prints in a process of its own; a failure is this test's."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True, text=True, timeout=560, check=False, env=given | environment,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


CASES = (
    "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", "tests/moe/fused_cases.py",
    "tests/moe/triton_cases.py",
)  # fmt: skip


@pytest.mark.slow
def test_interpreted_kernels_follow_the_loop():
    assert " passed" in ran(*CASES, FUSED="triton", TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_a_gpu_follow_the_loop():
    told = ran(*CASES, FUSED="triton")
    assert " passed" in told
    assert "skipped" not in told


@pytest.mark.slow
def test_every_launch_compiles_for_gpus_with_room_in_their_shared_memory(tmp_path):
    told = ran("tests.moe.compiled_kernels", TRITON_CACHE_DIR=str(tmp_path))
    kernels = {tuple(line.split()[:2]) for line in told.splitlines()}
    assert len(kernels) == 2 * 5


def layer_of(experts, **options) -> MHMoE:
    return MHMoE(24, 2, 3, experts=partial(experts, hidden=8, **options))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, r"needs a CUDA device, and the tokens are on cpu"),
        ({"sub_norm": True}, r"more than two products and an activation"),
        ({"quantization": BitNet()}, r"more than two products and an activation"),
    ],
)
@pytest.mark.parametrize("experts", [GeluExperts, SwiGLUExperts])
def test_what_cannot_be_fused_is_refused_in_a_sentence_or_falls_back_when_told(
    experts, options, reason
):
    x = torch.randn(2, 5, 24)
    with pytest.raises(ValueError, match=rf"{reason}.*Use GroupedBackend, or .*fallback=True"):
        layer_of(experts, backend=TritonBackend, **options)(x)
    layer = layer_of(experts, backend=partial(TritonBackend, fallback=True), **options)
    y, _ = layer(x)
    layer.moe.experts.backend = GroupedBackend()
    assert torch.equal(layer(x)[0], y)


def test_other_precisions_are_refused():
    backend = TritonBackend()
    backend.devices += ("cpu",)
    with pytest.raises(ValueError, match=r"float32, bfloat16 and float16, .* torch.float64"):
        layer_of(GeluExperts, backend=lambda: backend).double()(torch.randn(2, 5, 24).double())


def test_without_triton_it_can_be_built_and_says_so(monkeypatch):
    monkeypatch.setattr(backend_triton, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Triton is not installed"):
        layer_of(GeluExperts, backend=TritonBackend)(torch.randn(2, 5, 24))


def test_blocks_that_are_no_tile_are_refused():
    with pytest.raises(ValueError, match="16, 32, 64 or 128 rows for TritonBackend, got 24"):
        TritonBackend(24)
