"""Codes for vectors of length 1, moved by what they stand for and not by gradients.

    start    k-means over the first vectors, by angle
    step     every code becomes the mean of itself and of the vectors that chose it; one that none
             chose stays where it is
    restart  codes that hardly any vector chooses move to vectors that are badly represented

All ranks have the same codes: each of these looks at the vectors of all ranks, so that the codebook
does not depend on how a batch was cut. Source: https://arxiv.org/abs/2208.06366, section 2.2, and
the code released with it; that starts every rank from its own vectors, which is not copied, and
never restarts a code, which suits few images less than many.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

ROWS = 8192
"""Vectors that are compared with all codes at a time."""


class Assigned(NamedTuple):
    """Which codes some vectors chose: sums, so that those of several batches or ranks add up."""

    count: Float[Tensor, " codes"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Vectors that chose each code."""
    total: Float[Tensor, "codes dim"]
    """Their sum."""

    def plus(self, other: "Assigned") -> "Assigned":
        """What the vectors of both chose."""
        return Assigned(self.count + other.count, self.total + other.total)


class Codebook(nn.Module):
    """Unit vectors, each with a number.

    Until `start` they are random. The codes are a buffer: no optimizer sees them.
    """

    code: Tensor
    """float32 (codes dim)."""
    started: Tensor
    """Whether the codes have been found from data."""
    recent: Tensor
    """float32 (codes): a moving mean of how many vectors of a step choose each."""

    def __init__(self, num_codes: int, dim: int):
        super().__init__()
        if num_codes < 1 or dim < 1:
            raise ValueError(f"A codebook of {num_codes} codes of {dim} features cannot be.")
        self.register_buffer("code", F.normalize(torch.randn(num_codes, dim), dim=1))
        self.register_buffer("started", torch.tensor([False]))
        self.register_buffer("recent", torch.zeros(num_codes))
        self._known_started = False

    @property
    def is_started(self) -> bool:
        """Whether the codes have been found from data; waits for the device until they have."""
        self._known_started = self._known_started or bool(self.started)
        return self._known_started

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_started = False

    def forward(
        self, vector: Float[Tensor, "*rows dim"]
    ) -> tuple[Float[Tensor, "*rows dim"], Int[Tensor, "*rows"]]:
        """The nearest code of every unit vector, and its number.

        The codes' gradient is passed on to the vectors as it is (straight through).
        """
        number = nearest(vector.detach().flatten(0, -2), self.code).view(vector.shape[:-1])
        code = self.code[number]
        return vector + (code - vector).detach(), number

    @torch.no_grad()
    def assigned(
        self, vector: Float[Tensor, "*rows dim"], number: Int[Tensor, "*rows"]
    ) -> Assigned:
        """Who chose what, on this rank."""
        return _assigned(vector.flatten(0, -2), number.flatten(), len(self.code))

    @torch.no_grad()
    def step(self, assigned: Assigned, decay: float) -> Float[Tensor, " codes"]:
        """Move the codes; all ranks do so together, each with its own share of the vectors.

        Args:
            assigned: what the vectors of a step chose on this rank.
            decay: how much of a code stays.

        Returns:
            How many vectors of all ranks chose each code.
        """
        count, total = (_summed(part) for part in assigned)
        moved = decay * self.code.to(total.dtype) + (1 - decay) * F.normalize(total, dim=1)
        chosen = (count > 0)[:, None]
        self.code.copy_(torch.where(chosen, F.normalize(moved, dim=1).float(), self.code))
        self.recent.lerp_(count.float(), 1 - decay)
        return count

    @torch.no_grad()
    def restart(
        self, vector: Float[Tensor, "*rows dim"], number: Int[Tensor, "*rows"], below: float
    ) -> int:
        """Move codes that fewer than `below` vectors of a step chose of late; all ranks together.

        Each takes the place of a vector, drawn from those of all ranks without replacement, the
        likelier the farther it is from its code. Waits for the device.

        Args:
            vector: unit vectors of this rank.
            number: the codes that they chose.
            below: vectors of all ranks a step.

        Returns:
            How many codes were moved.
        """
        lost = (self.recent < below).nonzero()[:, 0]
        row, chosen = vector.flatten(0, -2).float(), number.flatten()
        lengths, seed = _lengths(row), _from_rank_0(torch.randint(2**31, (1,), device=row.device))
        wanted = min(len(lost), sum(lengths))
        if not wanted:
            return 0
        distance = (1 - (row * self.code[chosen]).sum(dim=1)).clamp(min=1e-12)
        # The largest of log(p) plus Gumbel noise are a draw without replacement by p.
        draw = torch.Generator().manual_seed(int(seed))
        uniform = torch.rand(sum(lengths), generator=draw, dtype=torch.float64).clamp(min=1e-300)
        first = sum(lengths[: _rank()])
        noise = -(-uniform.log()).log()[first : first + len(row)].to(row)
        key, place = (distance.log() + noise).topk(min(wanted, len(row)))
        best = _of_all_ranks(torch.cat([key[:, None], row[place]], dim=1))
        best = best[best[:, 0].topk(wanted).indices, 1:]
        self.code[lost[:wanted]] = best
        self.recent[lost[:wanted]] = below
        return wanted

    @torch.no_grad()
    def start(self, vector: Float[Tensor, "*rows dim"], rounds: int = 10) -> None:
        """Find the codes from unit vectors by k-means; all ranks do so together.

        Raises:
            ValueError: there are fewer vectors, over all ranks, than codes.
        """
        row = _of_all_ranks(vector.float().flatten(0, -2))
        if len(row) < len(self.code):
            raise ValueError(
                f"The first batch has {len(row)} patches on all ranks together, from which "
                f"{len(self.code)} codes cannot be found: make the batch larger, or the codebook "
                "smaller."
            )
        self.code.copy_(_from_rank_0(spherical_k_means(row, len(self.code), rounds)))
        self.recent.copy_(_assigned(row, nearest(row, self.code), len(self.code)).count)
        self.started.fill_(True)


@torch.no_grad()
def nearest(
    vector: Float[Tensor, "rows dim"], code: Float[Tensor, "codes dim"]
) -> Int[Tensor, " rows"]:
    """The code with the smallest angle to each vector; in float32 whatever autocast says."""
    with torch.autocast(vector.device.type, enabled=False):
        parts = [(part @ code.T).argmax(dim=1) for part in vector.float().split(ROWS)]
    return torch.cat(parts) if parts else vector.new_zeros(0, dtype=torch.long)


def spherical_k_means(
    vector: Float[Tensor, "rows dim"], num_codes: int, rounds: int
) -> Float[Tensor, "codes dim"]:
    """Unit vectors that stand for the given ones: k-means by angle.

    Starts from vectors drawn at random; one that loses all of its vectors stays.
    """
    drawn = torch.randperm(len(vector))[:num_codes]  # on the CPU: the same on every device
    code = vector[drawn.to(vector.device)]
    for _ in range(rounds):
        count, total = _assigned(vector, nearest(vector, code), num_codes)
        code = torch.where((count > 0)[:, None], F.normalize(total, dim=1).float(), code)
    return code


def _assigned(
    vector: Float[Tensor, "rows dim"], number: Int[Tensor, " rows"], num_codes: int
) -> Assigned:
    exact = torch.float32 if vector.device.type == "mps" else torch.float64
    row = torch.cat([vector.to(exact), vector.new_ones(len(vector), 1, dtype=exact)], dim=1)
    summed = row.new_zeros(num_codes, row.shape[1]).index_add_(0, number, row)
    return Assigned(summed[:, -1], summed[:, :-1])


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _summed(part: Tensor) -> Tensor:
    """The sum over ranks."""
    if _is_shared():
        part = part.contiguous().clone()
        dist.all_reduce(part)
    return part


def _from_rank_0(found: Tensor) -> Tensor:
    """Ranks draw different numbers, so all take what rank 0 found."""
    if _is_shared():
        found = found.contiguous()
        dist.broadcast(found, 0)
    return found


def _of_all_ranks(row: Float[Tensor, "rows dim"]) -> Float[Tensor, "all_rows dim"]:
    """The rows of all ranks in their order, on every rank; each may have another number of them."""
    if not _is_shared():
        return row
    number = _lengths(row)
    padded = F.pad(row, (0, 0, 0, max(number) - len(row))).contiguous()
    parts = [torch.empty_like(padded) for _ in number]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, number, strict=True)])


def _lengths(row: Float[Tensor, "rows dim"]) -> list[int]:
    """How many rows each rank has."""
    if not _is_shared():
        return [len(row)]
    length = torch.tensor([len(row)], device=row.device)
    lengths = [torch.empty_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    return [int(each) for each in lengths]


def _rank() -> int:
    return dist.get_rank() if _is_shared() else 0
