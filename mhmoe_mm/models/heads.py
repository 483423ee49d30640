"""What stands on an encoder's hidden rows, a head per objective; shapes as in released models.

Tied to nothing. A pair's image is read at its class token, its text at `<s>`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mhmoe_mm.models.init import linear, start_small, unit_linear


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


class Pooler(nn.Module):
    """A row as the classifiers of pairs read it: normed, mapped, squashed by tanh."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dense = unit_linear(dim, dim)

    def forward(self, row: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return self.dense(self.norm(row)).tanh()


class AnswerHead(nn.Module):
    """Scores of every answer to a question."""

    def __init__(self, dim: int, num_answers: int):
        super().__init__()
        self.dense = unit_linear(dim, 2 * dim)
        self.norm = nn.LayerNorm(2 * dim)
        self.out = unit_linear(2 * dim, num_answers)

    def forward(self, row: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch answers"]:
        return self.out(F.gelu(self.norm(self.dense(row))))


class TwoImageHead(nn.Module):
    """Whether a sentence is true of two images: scores of false and of true.

    Reads four rows: image and text of the left pair, image and text of the right one. Starts with
    almost equal scores, as the released code does.
    """

    def __init__(self, dim: int, num_classes: int = 2):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.dense = linear(4 * dim, 2 * dim)
        self.second_norm = nn.LayerNorm(2 * dim)
        self.out = linear(2 * dim, num_classes)
        with torch.no_grad():
            for module in (self.dense, self.out):
                module.weight.mul_(0.001)

    def forward(self, rows: Float[Tensor, "batch four_dim"]) -> Float[Tensor, "batch classes"]:
        return self.out(F.gelu(self.second_norm(self.dense(self.norm(rows)))))


class ClassHead(nn.Module):
    """Scores of every class, from the mean of an image's patches."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = linear(dim, num_classes)

    def forward(self, patch: Float[Tensor, "batch patches dim"]) -> Float[Tensor, "batch classes"]:
        return self.out(self.norm(patch.mean(dim=1)))


class EmbeddingHead(nn.Module):
    """An image or a text as a vector of length 1, to be compared by scalar products."""

    def __init__(self, dim: int):
        super().__init__()
        self.out = nn.Linear(dim, dim, bias=False)
        start_small(self.out.weight)

    def forward(self, row: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return F.normalize(self.out(row).float(), dim=-1)
