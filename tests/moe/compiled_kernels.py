"""Launch every kernel on GPUs that are not there: all but the launch itself is done.

What the interpreter does not see: how arguments become types, layouts, tensor cores, registers and
shared memory. With `--all` every configuration is compiled, and may be too large.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from triton import JITFunction
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from mhmoe_mm.moe import GeluExperts, Plan, SwiGLUExperts
from mhmoe_mm.moe.backend_triton import TritonBackend

ROOM = {80: 99 * 1024, 90: 227 * 1024}
"""Shared memory of a block in bytes, by compute capability; 8.6 and 8.9 have the least of 8.x."""


EVERY = "--all" in sys.argv


class Absent:
    """The driver of a GPU that is not there, as far as compiling needs one."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # so that no kernel of another is taken

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_benchmarker(self) -> Callable:
        def once(call: Callable, quantiles: Any) -> list[float]:
            call()
            return [1.0, 1.0, 1.0]

        return once


def compiled(self: JITFunction, *args: Any, grid: Any, warmup: bool, **given: Any) -> Any:
    """In the place of `JITFunction.run`: does not launch; says what of the GPU it would take."""
    made = RUN(self, *args, grid=grid, warmup=True, **given)
    programs = grid(given) if callable(grid) else grid
    assert len(programs) == 1
    assert programs[0] > 0
    capability, shared = driver.active.get_current_device(), made.metadata.shared
    assert shared <= ROOM[capability] or EVERY, (self.__name__, given, shared)
    tensor_cores = any(word in made.asm["ptx"] for word in ("wgmma", "mma.sync"))
    assert tensor_cores == (given.get("PRECISION") == "tf32"), (self.__name__, given)
    print(capability, self.__name__, given, shared)
    return made


def step(experts: Any, width: int, dtype: torch.dtype) -> None:
    """A forward and a backward, of numbers that nothing was computed for."""
    experts.to(dtype).backend.devices = ("cpu",)
    token = torch.zeros(13, width, dtype=dtype, requires_grad=True)
    weight = torch.ones(26, requires_grad=True)
    expert = torch.arange(26) % (experts.num_experts + 1)
    plan = Plan(torch.arange(13).repeat_interleave(2), expert, weight, 2)
    experts(token, plan).sum().backward()


def main() -> None:
    torch.use_deterministic_algorithms(not EVERY)  # which takes the first
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    JITFunction.run = compiled
    gelu = partial(GeluExperts, 5, backend=TritonBackend)
    swiglu = partial(SwiGLUExperts, 5, bias=True, backend=TritonBackend)
    for capability, form, width, hidden, dtype in (
        (80, swiglu, 48, 80, torch.bfloat16),
        (90, gelu, 37, 67, torch.bfloat16),
        (90, swiglu, 64, 128, torch.float32),
    ):
        driver.set_active(Absent(capability))
        step(form(width, hidden=hidden), width, dtype)


RUN = JITFunction.run
if __name__ == "__main__":
    main()
