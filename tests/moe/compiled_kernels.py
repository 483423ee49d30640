"""Compile every kernel for GPUs that need not be here, in the configurations that are tried first.

What the interpreter does not see: types, layouts, tensor cores, shared memory.
"""

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mhmoe_mm.moe import triton_kernels as kernels

ROOM = {80: 99 * 1024, 90: 227 * 1024}
"""Shared memory of a block in bytes, by compute capability; 8.6 and 8.9 have the least of 8.x."""
INDICES = {"source": "*i64", "expert": "*i64", "slot": "*i64", "start": "*i64", "end": "*i32"}
FLOATS = ("gate", "gate_shares")
FEATURES = ("width", "size", "inner_size", "columns", "a", "b", "step_inner", "step_column")
SIZES = (*FEATURES, "num_experts", "num_tokens", "num_assign", "nobody")
UNGATED = dict.fromkeys(["w_gate", "b_gate", "pre_gate", "grad_pre_gate"])
ALONE = {**dict.fromkeys(["row2", "weight2", "bias"]), "step_inner": 1}  # transposed


def compiled(kernel: Any, capability: int, numbers: str, config: Any, **constants: Any) -> None:
    """Compile it; say what of the GPU it takes."""
    jit = getattr(kernel, "fn", kernel) if config else kernel
    constants |= config.kwargs if config else {}
    constants = {name: value for name, value in constants.items() if name in jit.arg_names}
    signature = {
        name: "constexpr" if name in constants
        else INDICES.get(name) or ("i32" if name in SIZES else "*fp32" if name in FLOATS
                                   else f"*{numbers}")
        for name in jit.arg_names
    }  # fmt: skip
    multiples = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or (kind == "i32" and name in FEATURES)
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages} if config else {}
    made = triton.compile(
        ASTSource(jit, signature, constants, multiples),
        target=GPUTarget("cuda", capability, 32), options=options,
    )  # fmt: skip
    shared = made.metadata.shared
    tensor_cores = any(word in made.asm["ptx"] for word in ("wgmma", "mma.sync"))
    assert shared <= ROOM[capability], (jit.__name__, shared)
    assert tensor_cores or not config or constants["PRECISION"] == "ieee", jit.__name__
    print(jit.__name__, capability, numbers, constants.get("PRECISION"), shared)


def main() -> None:
    given = {"PRECISION": "tf32", "BM": 64, "BR": 64, "PART": kernels.PART}
    for capability, numbers in ((80, "bf16"), (90, "bf16"), (90, "fp32")):
        for kernel, kind in (
            (kernels.first_kernel, {}),
            (kernels.first_kernel, UNGATED),
            (kernels.rows_kernel, ALONE),
            (kernels.first_grad_kernel, {}),
            (kernels.weight_grad_kernel, {"GATHER_LEFT": False}),
        ):
            compiled(kernel, capability, numbers, kernel.configs[0], **given, **kind)
        compiled(kernels.gather_sum_kernel, capability, numbers, None, BW=256)


if __name__ == "__main__":
    main()
