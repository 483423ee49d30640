"""How much of a codebook is in use."""

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class CodebookUsage(Metric):
    """The share of codes that some patch has, and how evenly they are used.

    Args:
        num_codes: size of the codebook.
    """

    full_state_update = False
    count: Tensor

    def __init__(self, num_codes: int):
        super().__init__()
        self.add_state("count", torch.zeros(num_codes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, code: Int[Tensor, "..."]) -> None:
        """Add the codes of some patches."""
        found = torch.bincount(code.flatten(), minlength=len(self.count))
        # Not in place: a state that was reset in inference mode may only be replaced outside it.
        self.count = self.count + found

    def compute(self) -> dict[str, Tensor]:
        """`codes_used`, a share, and `codes_perplexity`: how many equally frequent codes are as
        hard to guess, at most the number of codes.
        """
        share = self.count.double() / self.count.sum().clamp(min=1)
        return {
            "codes_used": (self.count > 0).double().mean().float(),
            "codes_perplexity": torch.special.entr(share).sum().exp().float(),
        }
