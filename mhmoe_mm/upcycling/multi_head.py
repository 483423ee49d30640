"""A dense feed-forward net as MHMoE: as near as sub-tokens allow.

An expert sees one sub-token, so a hidden unit that reads all of a token cannot be one of its own.
But the head map may choose what a sub-token is:

    1. the hidden units are shared out among the heads so that those of a head read, as nearly as
       can be, a space of as few dimensions as a sub-token has (k-subspaces, weighted by how much a
       unit adds to the output);
    2. the head map projects a token on each of these spaces, the experts of a head compute its
       units from there, cut in k slices, copied as often as there are experts;
    3. what they add up to is fitted to the dense net's output by least squares, then to as few
       dimensions as a sub-token has, and the merge map puts these back;
    4. one feature of a sub-token (two, where there are more than two heads) says which head it is,
       and the router sends it to the experts of that head.

No published mapping from dense nets to multi-head layers is known; this one is ours. What it loses
is what lies outside of the spaces: `Upcycled.error` says how much.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mhmoe_mm.moe.mh_moe import MHMoE
from mhmoe_mm.upcycling.dense_ffn import DenseFFN
from mhmoe_mm.upcycling.filling import (
    Start,
    Units,
    fill_experts,
    fill_router,
    gates_of,
    hidden_of,
)

ROUTER_STD = 1e-3
"""Of fresh router weights: all gates of a head alike to about two digits."""
CERTAIN = 12.0
"""By how much the logits of a head's own experts exceed those of other heads."""
ROUNDS, STARTS, RIDGE = 30, 5, 1e-4


@torch.no_grad()
def fill_multi_head(
    layer: MHMoE,
    dense: DenseFFN,
    scale: Float[Tensor, " dim"],
    shift: Float[Tensor, " dim"],
    normal: Float[Tensor, "rows dim"],
    start: Start,
    where: str,
) -> None:
    """Bring a multi-head layer near a dense net, in place.

    Args:
        layer: with one head map and one merge map.
        dense: the net.
        scale, shift: of the norm before it.
        normal: what such a norm lets through, before its scale and shift: many rows.
        start: how experts and routers start.
        where: the layer, for errors.

    Raises:
        ValueError: the layer is of another build than this can fill.
    """
    heads, dim, experts = layer.num_heads, dense.up.shape[1], layer.moe.experts
    head, merge = _maps(layer, where)
    k, sums_to_1 = gates_of(layer.router, where)
    hidden = hidden_of(experts, dense.gate is not None, where)
    num_experts, width = layer.router.num_experts, dim // heads
    if num_experts % (heads * k):
        raise ValueError(
            f"{where}: {num_experts} experts cannot be shared out among {heads} heads in groups of "
            f"{k}: choose a multiple of {heads * k}."
        )
    sign = head_signs(heads)
    space_dim = width - sign.shape[1]
    if space_dim < 1:
        raise ValueError(f"{where}: sub-tokens of {width} features are too narrow.")
    draw = torch.Generator().manual_seed(start.seed)
    token = normal * scale + shift
    wanted, dense = dense(token), dense.without_norm(token)

    # What the units read, of what the norm lets through before its scale.
    reads = [dense.up * scale] + ([] if dense.gate is None else [dense.gate * scale])
    constants = [dense.up @ shift + dense.up_bias]
    constants += [] if dense.gate is None else [dense.gate @ shift]
    weight = dense.activation(token).std(dim=0) * dense.down.norm(dim=0)
    owner, spaces = share_out(reads, weight, heads, space_dim, k * hidden, draw)

    # What the units say then, and the best that can be made of it.
    said, units = [], []
    for j, space in enumerate(spaces):
        own = (owner == j).nonzero()[:, 0]
        units.append(own)
        within = [normal @ space.T @ (read[own] @ space.T).T for read in reads]
        sums = [part + c[own] for part, c in zip(within, constants, strict=True)]
        said.append(_activated(sums))
    fitted = _least_squares(torch.cat(said, dim=1), wanted)
    blocks = fitted.split([len(own) for own in units], dim=1)

    safe = torch.where(scale.abs() < 1e-4, 1e-4, scale)
    answer, parts, rows = torch.zeros_like(wanted), [], []
    groups = num_experts // (heads * k)
    times = k if sums_to_1 else num_experts / heads
    for j, (space, own, block) in enumerate(zip(spaces, units, blocks, strict=True)):
        out = _main_directions(block, said[j], width)
        answer += said[j] @ (out @ (out.T @ block)).T
        place, features = slice(j * width, (j + 1) * width), slice(j * width, j * width + space_dim)
        head.weight[place].zero_()
        head.weight[features], head.bias[features] = space / safe, -(space / safe) @ shift
        head.bias[j * width + space_dim : (j + 1) * width] = sign[j]
        merge.weight[:, place] = out
        sliced = [
            _unit_part(
                [read[own[s::k]] @ space.T for read in reads],
                [c[own[s::k]] for c in constants],
                block[:, s::k].T @ out * times,
                sign[j],
                experts.b_in is not None,  # pyright: ignore[reportAttributeAccessIssue]
            )
            for s in range(k)
        ]
        parts += sliced * groups
        std = ROUTER_STD if start.router_std is None else start.router_std
        group = std * torch.randn(groups, space_dim, generator=draw)
        certain = CERTAIN * sign[j] / (1 - math.cos(2 * math.pi / heads)) if heads > 1 else sign[j]
        rows.append(torch.cat([group, certain.expand(groups, -1)], dim=1).repeat_interleave(k, 0))
    fill_router(layer.router, torch.cat(rows), where)
    fill_experts(experts, parts, torch.zeros(width), start, draw, where)
    merge.bias.copy_((wanted - answer).mean(dim=0))


def head_signs(heads: int) -> Float[Tensor, "heads features"]:
    """What tells the heads apart: points whose own direction is farthest from the others'."""
    if heads == 1:
        return torch.zeros(1, 0)
    if heads == 2:
        return torch.tensor([[1.0], [-1.0]])
    angle = 2 * math.pi * torch.arange(heads) / heads
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def share_out(
    reads: list[Float[Tensor, "units dim"]],
    weight: Float[Tensor, " units"],
    heads: int,
    space_dim: int,
    most: int,
    draw: torch.Generator,
) -> tuple[Int[Tensor, " units"], list[Float[Tensor, "space dim"]]]:
    """Which head computes each unit, and the space that the units of each head read.

    Units go to the head in whose space most of what they read lies, the weightiest first, at most
    `most` to a head; those for which there is no room are left out, with the number `heads`. Of
    several starts the one that keeps most.
    """
    count = len(weight)
    vectors = torch.stack([weight[:, None] * r / r.norm(dim=1, keepdim=True) for r in reads])
    order = weight.argsort(descending=True)
    best: tuple[float, Tensor, list[Tensor]] | None = None
    for _ in range(STARTS):
        owner = torch.randperm(count, generator=draw) % heads
        for _ in range(ROUNDS):
            kept = _kept(vectors, _spaces(vectors, owner, heads, space_dim))
            before, owner = owner, _with_room(kept, order, most)
            if torch.equal(owner, before):
                break
        spaces = _spaces(vectors, owner, heads, space_dim)
        placed = owner < heads
        score = float(_kept(vectors, spaces)[placed].gather(1, owner[placed, None]).sum())
        if best is None or score > best[0]:
            best = score, owner, spaces
    assert best is not None
    return best[1], best[2]


def _spaces(vectors: Tensor, owner: Tensor, heads: int, space_dim: int) -> list[Tensor]:
    return [_space(vectors[:, owner == j].flatten(0, 1), space_dim) for j in range(heads)]


def _kept(vectors: Tensor, spaces: list[Tensor]) -> Float[Tensor, "units heads"]:
    """How much of what each unit reads lies in each space."""
    return torch.stack([(vectors @ s.T).square().sum(dim=(0, 2)) for s in spaces], dim=1)


def _with_room(kept: Float[Tensor, "units heads"], order: Tensor, most: int) -> Tensor:
    heads = kept.shape[1]
    room = [most] * heads
    owner = torch.full((len(kept),), heads)
    wishes = kept.argsort(dim=1, descending=True).tolist()
    for unit in order.tolist():
        head = next((j for j in wishes[unit] if room[j]), heads)
        owner[unit] = head
        if head < heads:
            room[head] -= 1
    return owner


def _space(rows: Float[Tensor, "rows dim"], space_dim: int) -> Float[Tensor, "space dim"]:
    """An orthonormal basis of the directions in which rows are longest."""
    return torch.linalg.eigh(rows.T @ rows).eigenvectors[:, -space_dim:].T.contiguous()


def _main_directions(
    block: Float[Tensor, "dim units"], said: Float[Tensor, "rows units"], width: int
) -> Float[Tensor, "dim width"]:
    """An orthonormal basis of what a head adds to the output, as far as it varies most."""
    varying = (said - said.mean(dim=0)) @ block.T
    return _space(varying, width).T


def _least_squares(
    said: Float[Tensor, "rows units"], wanted: Float[Tensor, "rows dim"]
) -> Float[Tensor, "dim units"]:
    """The map from units to outputs that errs least, up to constants."""
    x, y = said - said.mean(dim=0), wanted - wanted.mean(dim=0)
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
    return torch.linalg.solve(gram, x.T @ y).T


def _activated(sums: list[Tensor]) -> Tensor:
    if len(sums) == 1:
        return nn.functional.gelu(sums[0])
    return nn.functional.silu(sums[1]) * sums[0]


def _unit_part(
    reads: list[Tensor], constants: list[Tensor], w_out: Tensor, sign: Tensor, has_bias: bool
) -> Units:
    """Units of one expert. Without biases, constants are read off the features that tell the head:
    they are constant too.
    """
    told = sign / sign.square().sum().clamp(min=1e-9)
    w = [
        torch.cat([read, torch.outer(torch.zeros_like(c) if has_bias else c, told)], dim=1).T
        for read, c in zip(reads, constants, strict=True)
    ]
    b = [c if has_bias else torch.zeros_like(c) for c in constants]
    gated = len(reads) == 2
    return Units(w[0], b[0], w_out, w[1] if gated else None, b[1] if gated else None)


def _maps(layer: MHMoE, where: str) -> tuple[nn.Linear, nn.Linear]:
    maps = [*layer.head_proj, *layer.merge_proj]
    if [len(layer.head_proj), len(layer.merge_proj)] != [1, 1] or layer.subtoken_residual:
        raise ValueError(
            f"{where}: only layers with one head map, one merge map and no residual of sub-tokens "
            "can be filled: set head_layers=1, merge_layers=1, subtoken_residual=False."
        )
    if layer.shared is not None:
        raise ValueError(f"{where} has a shared expert, which is not filled: leave `shared` out.")
    head, merge = maps
    assert isinstance(head, nn.Linear)
    assert isinstance(merge, nn.Linear)
    return head, merge
