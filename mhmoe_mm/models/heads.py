"""What stands on an encoder's hidden rows: one linear map per objective.

Tied to nothing, as in the released models.
"""

from jaxtyping import Float
from torch import Tensor, nn

from mhmoe_mm.models.init import linear


class MaskedLanguageHead(nn.Module):
    """Scores of every token of the vocabulary, for masked language modelling."""

    def __init__(self, dim: int, vocab_size: int):
        super().__init__()
        self.out = linear(dim, vocab_size)

    def forward(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows vocab"]:
        return self.out(hidden)


class MaskedImageHead(nn.Module):
    """What a masked patch was: scores of every visual code, or numbers such as its pixels."""

    def __init__(self, dim: int, num_targets: int):
        super().__init__()
        self.out = linear(dim, num_targets)

    def forward(self, hidden: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows targets"]:
        return self.out(hidden)
