"""How well each expert suits each token: logits, always in float32.

The released code of both papers runs this product in the model's own precision and casts
afterwards; here the whole router is float32, because a bfloat16 logit has three digits and top-k
decides on the fourth.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Scorer(nn.Module, ABC):
    """Logits of every expert for every token. Abstract."""

    @abstractmethod
    def forward(self, token: Float[Tensor, "n width"]) -> Float[Tensor, "n experts"]:
        """float32 logits."""

    def project(self) -> None:
        """Put constrained parameters back where they belong; called once per optimizer step."""


ScorerFactory = Callable[[int, int], Scorer]
"""Makes a scorer from (width, num_experts)."""


class LinearScorer(Scorer):
    """One linear map without bias; torch's default init, as in the released code."""

    def __init__(self, width: int, num_experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, token: Float[Tensor, "n width"]) -> Float[Tensor, "n experts"]:
        with torch.autocast(token.device.type, enabled=False):
            return F.linear(token.float(), self.weight.float())


class XMoEScorer(Scorer):
    """X-MoE as released: a low-dimensional projection against unit expert embeddings.

    `logits = reduce(token) @ normalize(embed).T`; the projection is not normalised and there is no
    temperature. The released code rescales the embeddings to norm 1.5 in every forward, in place.
    Here forward changes nothing: it reads a rescaled view with that gradient, and `project` moves
    the parameter once per step.

    Source: https://arxiv.org/abs/2204.09179 and the code of https://arxiv.org/abs/2404.15045.
    """

    norm = 1.5

    def __init__(self, width: int, num_experts: int, embed_dim: int = 16):
        super().__init__()
        self.reduce = nn.Linear(width, embed_dim, bias=False)
        self.embed = nn.Parameter(torch.empty(num_experts, embed_dim))
        nn.init.orthogonal_(self.embed, gain=0.32)

    def forward(self, token: Float[Tensor, "n width"]) -> Float[Tensor, "n experts"]:
        with torch.autocast(token.device.type, enabled=False):
            embed = self.embed.float()
            embed = embed + (self._rescaled(embed) - embed).detach()  # gradient as at norm 1.5
            reduced = F.linear(token.float(), self.reduce.weight.float())
            return F.linear(reduced, F.normalize(embed, dim=1, eps=1e-4))

    @torch.no_grad()
    def project(self) -> None:
        self.embed.copy_(self._rescaled(self.embed))

    def _rescaled(self, embed: Tensor) -> Tensor:
        return embed * (self.norm / embed.norm(dim=1, keepdim=True))


class CosineScorer(Scorer):
    """True cosine similarity in a low-dimensional space, divided by a learnable temperature.

    What X-MoE's paper describes: both sides are normalised, the temperature starts at 0.3 for
    softmax gates and is learned. It is kept as a logarithm, so it stays positive.
    """

    def __init__(self, width: int, num_experts: int, embed_dim: int = 16, temperature: float = 0.3):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"The temperature of a cosine router is positive, got {temperature}.")
        self.reduce = nn.Linear(width, embed_dim, bias=False)
        self.embed = nn.Parameter(torch.empty(num_experts, embed_dim))
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        nn.init.orthogonal_(self.embed)

    def forward(self, token: Float[Tensor, "n width"]) -> Float[Tensor, "n experts"]:
        with torch.autocast(token.device.type, enabled=False):
            reduced = F.normalize(F.linear(token.float(), self.reduce.weight.float()), dim=1)
            cosine = F.linear(reduced, F.normalize(self.embed.float(), dim=1))
            return cosine / self.log_temperature.float().exp()
