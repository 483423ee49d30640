"""What became of every tensor of a file, in a table where the layers of a network share a line."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

NAMED_AT_MOST = 6


def listed(names: Sequence[str]) -> str:
    """`3 (a, b, c)`, cut where there are many."""
    if not names:
        return "none"
    more = len(names) - NAMED_AT_MOST
    some = ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
    return f"{len(names)} ({some})"


def table(names: Mapping[str, str], given: Mapping[str, Tensor]) -> list[str]:
    """A line for each kind of tensor: their name, ours, its shape and type in the file, how many.

    Args:
        names: from every name in the file to ours; numbers in names are those of layers or experts
            and stand as `#`.
        given: the tensors in the file.
    """
    kinds: dict[tuple[str, str, str], int] = {}
    for theirs, ours in names.items():
        weight = given[theirs]
        shape = "x".join(str(size) for size in weight.shape) or "one number"
        dtype = str(weight.dtype).removeprefix("torch.")
        kind = (_general(theirs), _general(ours), f"{shape} {dtype}")
        kinds[kind] = kinds.get(kind, 0) + 1
    rows = [(*kind, f"x {times}" if times > 1 else "") for kind, times in kinds.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return [
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    ]


def _general(name: str) -> str:
    return re.sub(r"(?<=\.)(layers|blocks|experts)\.\d+\.|^(blocks|layers)\.\d+\.", _counted, name)


def _counted(found: re.Match[str]) -> str:
    return f"{found[1] or found[2]}.#."
