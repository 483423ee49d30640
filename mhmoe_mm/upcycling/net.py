"""A sparse network from a dense one of the same build: all that they share is copied, and every
feed-forward net that is dense there and sparse here is turned.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.moe.sparse_layers import sparse_layers
from mhmoe_mm.upcycling.dense_ffn import dense_ffn
from mhmoe_mm.upcycling.filling import Start
from mhmoe_mm.upcycling.multi_head import fill_multi_head
from mhmoe_mm.upcycling.sparse import fill_sparse

ROWS = 4096
"""Random tokens that layers are compared on."""


class Upcycled(NamedTuple):
    """A layer that was turned."""

    path: str
    kind: str
    error: float
    """Root mean square of the difference of both layers' outputs, divided by that of the dense
    layer's output around its mean; on random tokens as its norm lets them through."""


@torch.no_grad()
def upcycle_net(dense: nn.Module, sparse: nn.Module, start: Start) -> list[Upcycled]:
    """Fill a sparse network, in place, with what a dense one knows.

    Raises:
        ValueError: they differ elsewhere, or a layer cannot be filled.
    """
    old = dict(dense.named_modules())
    places = sparse_layers(sparse).items()
    turned = {p: m for p, m in places if p in old and type(old[p]) is not type(m)}
    if not turned:
        raise ValueError(
            "There is nothing to turn: the new network has no sparse layer where the old one has a "
            "dense feed-forward net."
        )
    _copy_rest(dense, sparse, tuple(f"{path}." for path in turned))
    was_training = sparse.training
    sparse.eval()
    done = [_turned(path, old, layer, start) for path, layer in turned.items()]
    sparse.train(was_training)
    return done


def _turned(
    path: str, old: dict[str, nn.Module], layer: SparseMoE | MHMoE, start: Start
) -> Upcycled:
    net = dense_ffn(old[path])
    if net is None:
        raise ValueError(f"{path} is {type(old[path]).__name__} in the dense network: not dense.")
    scale, shift, normal = _norm_before(path, old, net.up.shape[1], start.seed)
    x = normal * scale + shift
    if isinstance(layer, MHMoE):
        fill_multi_head(layer, net, scale, shift, normal, start, path)
    else:
        fill_sparse(layer, net, x, start, path)
    wanted = net(x)
    difference = layer(x[None])[0][0] - wanted
    error = (difference.square().sum() / (wanted - wanted.mean(dim=0)).square().sum()).sqrt()
    return Upcycled(path, type(layer).__name__, float(error))


def _norm_before(
    path: str, old: dict[str, nn.Module], dim: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift of the norm before a feed-forward net, and rows that it has normalised."""
    norm = old.get(".".join("ffn_norm" if part == "ffn" else part for part in path.split(".")))
    normal = torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(seed))
    if isinstance(norm, nn.LayerNorm):
        normal = F.layer_norm(normal, (dim,))
    elif isinstance(norm, nn.RMSNorm):
        normal = F.rms_norm(normal, (dim,))
    scale, shift = (getattr(norm, name, None) for name in ("weight", "bias"))
    return (
        torch.ones(dim) if scale is None else scale.detach().float(),
        torch.zeros(dim) if shift is None else shift.detach().float(),
        normal,
    )


def _copy_rest(dense: nn.Module, sparse: nn.Module, turned: tuple[str, ...]) -> None:
    """All weights outside the turned layers; ValueError where they are not the same."""
    own, given = (
        {name: w for name, w in net.state_dict().items() if not name.startswith(turned)}
        for net in (sparse, dense)
    )
    shapes = [{(name, weight.shape) for name, weight in side.items()} for side in (own, given)]
    if differing := sorted({name for name, _ in shapes[0] ^ shapes[1]}):
        name = differing[0]
        there, here = (
            tuple(side[name].shape) if name in side else "missing" for side in (given, own)
        )
        raise ValueError(
            f"The networks differ in more than their feed-forward nets: {name} is {there} in the "
            f"dense and {here} in the new one ({len(differing)} such)."
        )
    for name, weight in own.items():
        weight.copy_(given[name])
