"""The released MH-MoE layers: their names for the weights, and their settings as ours.

Two codes were released. "head" is the current one (top-k gate, SwiGLU experts, no biases); "v1" is
the first public version, torchscale's layer between two linear maps (top-1 or top-2 gate, X-MoE,
GELU experts with sub-LN). Facts: https://arxiv.org/abs/2404.15045, https://arxiv.org/abs/2411.16205.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mhmoe_mm.moe.capacity import Capacity
from mhmoe_mm.moe.experts import Experts, GeluExperts, SwiGLUExperts
from mhmoe_mm.moe.mh_moe import ExpertsFactory, MHMoE, RouterFactory
from mhmoe_mm.moe.routers import GShardRouter, TopKRouter
from mhmoe_mm.moe.scorers import LinearScorer, XMoEScorer

_PLAIN = {
    "gate.wg.weight": "moe.router.scorer.weight",
    "gate.wg": "moe.router.scorer.embed",
    "gate.wg_reduction.weight": "moe.router.scorer.reduce.weight",
    "multi_heads.weight": "head_proj.0.weight",
    "multi_heads.bias": "head_proj.0.bias",
    "out_proj.weight": "merge_proj.0.weight",
    "out_proj.bias": "merge_proj.0.bias",
}
_EXPERT = {
    "fc1.weight": "w_in",
    "fc3.weight": "w_gate",  # fc3 is the branch that goes through SiLU
    "fc2.weight": "w_out",
    "fc1.bias": "b_in",
    "fc3.bias": "b_gate",
    "fc2.bias": "b_out",
    "ffn_layernorm.weight": "norm.weight",
    "ffn_layernorm.bias": "norm.bias",
}


def from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The released layer's tensors under our names, experts stacked and matrices as [in out].

    Keys are those of one layer, without the decoder's prefix; the first version's `moe.` is taken
    off. Raises ValueError for a key that no released layer has, or for experts with gaps.
    """
    plain: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in state.items():
        key = name.removeprefix("moe.")
        if key in _PLAIN:
            plain[_PLAIN[key]] = tensor
        elif (part := re.fullmatch(r"experts\.(\d+)\.(.+)", key)) and part[2] in _EXPERT:
            tensor = tensor.T if tensor.ndim == 2 else tensor
            stacks.setdefault(f"moe.experts.{_EXPERT[part[2]]}", {})[int(part[1])] = tensor
        else:
            raise ValueError(f"'{name}' is not a tensor of a released MH-MoE layer.")
    for name, experts in stacks.items():
        if sorted(experts) != list(range(len(experts))):
            raise ValueError(
                f"The experts of '{name}' are numbered {sorted(experts)}; put the shards of all "
                "ranks together first, numbered from 0 without gaps."
            )
        plain[name] = torch.stack([experts[i] for i in range(len(experts))])
    return plain


def to_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `from_released`, with the current code's names."""
    plain = {ours: theirs for theirs, ours in _PLAIN.items()}
    expert = {ours: theirs for theirs, ours in _EXPERT.items()}
    released: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in plain:
            released[plain[name]] = tensor
            continue
        theirs = expert.get(name.removeprefix("moe.experts."))
        if theirs is None:
            raise ValueError(f"'{name}' has no counterpart in a released MH-MoE layer.")
        for i, one in enumerate(tensor.unbind()):
            released[f"experts.{i}.{theirs}"] = one.T if one.ndim == 2 else one
    return released


@dataclass(frozen=True)
class ReleasedLayer:
    """The settings of a released layer, by the meaning of its command-line flags.

    `eval_share` is `--moe-eval-capacity-token-fraction` where that is positive, else None.
    `normalize_gates` is `--moe-normalize-gate-prob-before-dropping`; the current decoder forgets to
    pass it on, torchscale's top-2 gate normalises after dropping where it is off. `second` is
    `--moe-second-expert-policy`, which only the first version's top-2 gate obeys.
    """

    dim: int
    hidden: int
    num_heads: int
    num_experts: int
    top_k: int
    version: Literal["head", "v1"] = "head"
    activation: Literal["silu", "gelu"] = "silu"
    bias: bool = False
    sub_norm: bool = False
    xmoe: bool = False
    eval_share: float | None = None
    normalize_gates: bool = False
    prioritized: bool = False
    second: Literal["always", "random", "sampled"] = "always"

    def build(self) -> MHMoE:
        """Our layer with these settings, its weights fresh."""
        plain = self.num_heads == 1 and self.version == "head"  # then there are no linear maps
        layers = 0 if plain else 1
        return MHMoE(
            self.dim,
            self.num_heads,
            self.num_experts,
            router=self._router(),
            experts=self._experts(),
            head_layers=layers,
            merge_layers=layers,
        )

    def _router(self) -> RouterFactory:
        scorer = XMoEScorer if self.xmoe else LinearScorer
        capacity = Capacity(1.0, self.eval_share)
        if self.version == "v1" and self.top_k == 2:
            return partial(
                GShardRouter,
                second=self.second,
                normalize_before=self.normalize_gates,
                capacity=capacity,
                prioritized=self.prioritized,
                scorer=scorer,
            )
        return partial(
            TopKRouter,
            top_k=self.top_k,
            renormalize=self.normalize_gates and self.top_k > 1,
            capacity=capacity,
            prioritized=self.prioritized,
            scorer=scorer,
        )

    def _experts(self) -> ExpertsFactory:
        form: type[Experts] = SwiGLUExperts if self.activation == "silu" else GeluExperts
        return partial(form, hidden=self.hidden, bias=self.bias, sub_norm=self.sub_norm)
