"""Run by test_codebook on ranks: a codebook whose vectors lie on two ranks, unevenly."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mhmoe_mm.models.codebook import Codebook

CODES, DIM, ROWS, STEPS = 11, 5, 97, 4
FIRST = 41
"""Rows of rank 0."""


def rows(step: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(100 + step)
    return F.normalize(torch.randn(ROWS, DIM, generator=draw) + 0.3, dim=1)


def trained(part: slice) -> tuple[Codebook, list[torch.Tensor]]:
    """The codebook after its start, some steps and restarts; the counts of the steps."""
    book = Codebook(CODES, DIM)
    book.start(rows(0)[part])
    counts = []
    for step in range(STEPS):
        row = rows(step)[part]
        number = book(row)[1]
        counts.append(book.step(book.assigned(row, number), decay=0.7))
        book.restart(row, number, below=ROWS / CODES)
    return book, counts


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(rank)  # ranks draw different numbers
    book, counts = trained(slice(FIRST, None) if rank else slice(FIRST))
    found = {**book.state_dict(), "counts": torch.stack(counts)}
    torch.save(found, Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
