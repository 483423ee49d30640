"""What users would otherwise pick for a sparse layer, given the same shape and the same work.

    one-hot        every token times a one-hot tensor (tokens experts capacity), as torchscale and
                   GShard do it; written here, with room for what random routing needs
    hf-grouped, hf-batched, hf-eager
                   the experts of Hugging Face's transformers (those of Nemotron-H, which have two
                   matrices), in each of its ways to multiply
    lucidrains     `mixture-of-experts` from PyPI: top-2, one-hot within each sequence, with as much
                   room

Each is given a router and, where the layer has several heads, the same two linear maps around it.
The second and third come with `pip install 'mhmoe-mm[peers]'`; one that is not there is named.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tools.benchmarks.cases import Case

SEQUENCE = 512
"""Tokens of a sequence, for those that route within each one."""
MOST_BYTES = 1e9
"""A tensor larger than that is not tried: a step holds several of them."""


class Unfit(ValueError):
    """A peer that this case is not for, with the reason."""


class Router(nn.Module):
    """The k most probable experts of every token and their probabilities, in float32."""

    def __init__(self, width: int, num_experts: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, token: Tensor) -> tuple[Tensor, Tensor]:
        prob = F.linear(token.float(), self.weight.float()).softmax(dim=1)
        gate, expert = prob.topk(self.top_k, dim=1)
        return expert, gate


class Heads(nn.Module):
    """Cuts tokens (batch seq dim) apart for a layer that reads rows (n width), and joins them."""

    def __init__(self, case: Case, inner: nn.Module):
        super().__init__()
        dim, self.heads = case.shape.dim, case.shape.num_heads
        several = self.heads > 1
        self.head_proj = nn.Linear(dim, dim) if several else nn.Identity()
        self.merge_proj = nn.Linear(dim, dim) if several else nn.Identity()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        row = rearrange(self.head_proj(x), "b s (h w) -> (b s h) w", h=self.heads)
        mixed = rearrange(self.inner(row), "(b s h) w -> b s (h w)", b=len(x), h=self.heads)
        return self.merge_proj(mixed)


def capacity_of(rows: int, top_k: int, num_experts: int) -> int:
    """Rows that an expert takes, with room for what random routing needs."""
    even = rows * top_k / num_experts
    return min(int(even + 4 * even**0.5) + 1, rows)


class OneHot(nn.Module):
    """Dispatch and combine as products with one-hot tensors; what is beyond capacity is lost."""

    def __init__(self, case: Case):
        super().__init__()
        shape = case.shape
        self.num_experts, self.top_k = shape.num_experts, int(shape.top_k)
        most = case.tokens * shape.num_heads
        _refuse_beyond(
            4 * most * self.num_experts * capacity_of(most, self.top_k, self.num_experts)
        )
        self.router = Router(shape.width, self.num_experts, self.top_k)
        self.w_in = _stacked(self.num_experts, shape.width, shape.hidden)
        self.w_out = _stacked(self.num_experts, shape.hidden, shape.width)

    def forward(self, row: Tensor) -> Tensor:
        capacity = capacity_of(len(row), self.top_k, self.num_experts)
        expert, gate = self.router(row)
        chosen = F.one_hot(expert, self.num_experts)  # (n k e)
        queue = rearrange(chosen, "n k e -> (k n) e").cumsum(0) - 1
        place = (rearrange(queue, "(k n) e -> n k e", k=self.top_k) * chosen).sum(-1)
        slot = F.one_hot(place.clamp(max=capacity), capacity + 1)[..., :-1]
        weights = torch.einsum("nk,nke,nkc->nec", gate, chosen.float(), slot.float())
        sent = torch.einsum("nec,nw->ecw", (weights > 0).to(row.dtype), row)
        answer = F.gelu(sent @ self.w_in) @ self.w_out
        return torch.einsum("nec,ecw->nw", weights.to(row.dtype), answer)


class HuggingFace(nn.Module):
    """transformers' experts behind a router."""

    def __init__(self, case: Case, implementation: str):
        super().__init__()
        shape = case.shape
        if implementation == "batched_mm":
            # It copies an expert's matrix for every row.
            _refuse_beyond(4 * case.rows * shape.width * shape.hidden)
        module = import_module("transformers.models.nemotron_h.modeling_nemotron_h")
        config = SimpleNamespace(
            n_routed_experts=shape.num_experts, hidden_size=shape.width,
            moe_intermediate_size=shape.hidden, moe_latent_size=None, mlp_hidden_act="gelu",
            _experts_implementation=implementation,
        )  # fmt: skip
        self.router = Router(shape.width, shape.num_experts, int(shape.top_k))
        self.experts = module.NemotronHExperts(config)
        for weight in (self.experts.up_proj, self.experts.down_proj):
            nn.init.uniform_(weight, -(weight.shape[2] ** -0.5), weight.shape[2] ** -0.5)

    def forward(self, row: Tensor) -> Tensor:
        expert, gate = self.router(row)
        return self.experts(row, expert, gate.to(row.dtype))


class Lucidrains(nn.Module):
    """`mixture-of-experts`, on sequences of `SEQUENCE` tokens."""

    def __init__(self, case: Case):
        super().__init__()
        shape = case.shape
        if shape.top_k != 2:
            raise Unfit("top-2 only")
        if case.tokens % SEQUENCE:
            raise Unfit(f"sequences of {SEQUENCE} tokens only")
        self.rows = SEQUENCE * shape.num_heads
        # Its own 1.25 would drop three of eight assignments, and be spared their work.
        room = capacity_of(self.rows, 2, shape.num_experts) * shape.num_experts / self.rows
        module = import_module("mixture_of_experts")
        self.moe = module.MoE(
            shape.width, num_experts=shape.num_experts, hidden_dim=shape.hidden,
            activation=nn.GELU, second_policy_train="all", capacity_factor_train=room,
        )  # fmt: skip

    def forward(self, row: Tensor) -> Tensor:
        mixed, _ = self.moe(row.view(-1, self.rows, row.shape[1]))
        return mixed.reshape(row.shape)


PEERS: dict[str, tuple[str, Callable[[Case], nn.Module]]] = {
    "one-hot": ("torch", OneHot),
    "hf-grouped": ("transformers", lambda case: HuggingFace(case, "grouped_mm")),
    "hf-batched": ("transformers", lambda case: HuggingFace(case, "batched_mm")),
    "hf-eager": ("transformers", lambda case: HuggingFace(case, "eager")),
    "lucidrains": ("mixture_of_experts", Lucidrains),
}
"""By name: the module that must be there, and what makes the layer of a case."""


def installed() -> list[str]:
    """Those that can be measured here."""
    return [name for name, (module, _) in PEERS.items() if find_spec(module)]


def peer(name: str, case: Case) -> nn.Module:
    """A layer that maps (batch seq dim) to the same.

    Raises:
        Unfit: the case is not for it, with the reason.
    """
    return Heads(case, PEERS[name][1](case))


def _refuse_beyond(bytes_: float) -> None:
    if bytes_ > MOST_BYTES:
        raise Unfit(f"a tensor of {bytes_ / 1e9:.1f} GB")


def _stacked(num_experts: int, fan_in: int, fan_out: int) -> nn.Parameter:
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(num_experts, fan_in, fan_out).uniform_(-bound, bound))
