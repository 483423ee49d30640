"""Run by test_settings on ranks: one training with every setting of the strategy."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.modules.module import register_module_forward_hook

from mhmoe_mm.models.causal_attention import CausalAttention
from mhmoe_mm.moe import GeluExperts
from mhmoe_mm.moe.scorers import Scorer
from mhmoe_mm.parallel.strategy import FSDP2
from tests.parallel.worlds import TRAININGS, Layout, trained

NAME = "language"
SETTINGS = {
    "offload": {"offload": True},
    "offload, ep 2": {"offload": True, "expert_parallel": 2},
    "bf16": {"gather": "bf16"},
    "bf16, ep 2": {"gather": "bf16", "expert_parallel": 2},
    "bf16 offload": {"gather": "bf16", "offload": True},
}
COMPILED = {
    "compiled": {"compile": True},
    "compiled bf16": {"compile": True, "recompute": True, "gather": "bf16"},
}
EXCHANGES = ("all_gather_single", "reduce_scatter_single")
"""What FSDP calls."""


class Travels:
    """Notes in which precision weights and gradients travel, and what scorers compute with."""

    def __init__(self) -> None:
        self.seen: dict[str, set[str]] = {}

    def note(self, what: str, dtype: torch.dtype) -> None:
        self.seen.setdefault(what, set()).add(str(dtype))

    def after(self, module: nn.Module, given: Any, returned: Any) -> None:
        """A hook of all modules; weights are together until then."""
        for kind in (Scorer, CausalAttention, GeluExperts):
            for param in module.parameters() if isinstance(module, kind) else ():
                self.note(kind.__name__, param.dtype)

    def watched(self, name: str) -> Any:
        exchange = getattr(dist, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.get("input_tensor", kwargs.get("input", args[1] if args[1:] else None))
            self.note(name, given.dtype)
            return exchange(*args, **kwargs)

        return noting


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    asked = COMPILED if sys.argv[2] == "compile" else SETTINGS
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    plain = {name: getattr(dist, name) for name in EXCHANGES}
    for name, options in asked.items():
        travels = Travels()
        torch._dynamo.reset()
        graphs = counters["stats"]["unique_graphs"]
        for exchange in EXCHANGES:
            setattr(dist, exchange, travels.watched(exchange))
        hook = None if "compile" in options else register_module_forward_hook(travels.after)
        found = trained(TRAININGS[NAME], Layout(partial(FSDP2, **options), (world,)), rank, world)
        for exchange in EXCHANGES:
            setattr(dist, exchange, plain[exchange])
        if hook is not None:
            hook.remove()
        if rank == 0:
            said = {"losses": found["losses"]} | {k: sorted(v) for k, v in travels.seen.items()}
            said["graphs"] = counters["stats"]["unique_graphs"] - graphs
            weights = {key: w.contiguous() for key, w in found["weights"].items()}
            save_file(weights, folder / f"{name}.safetensors", {"said": json.dumps(said)})
