"""Losses of the batch that all ranks read together.

A mean of the ranks' means is not the mean over all of them: ranks differ in how many tokens they
predict, and a balance loss is a product of two means. Here every loss is that of the whole batch,
so that training on more ranks is the same training.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from mhmoe_mm.losses import Prediction
from mhmoe_mm.moe.routing import Load

_BALANCED = ("token", "first", "prob", "square_logsumexp")
"""What the losses of a router are made of."""


def of_all_ranks(
    predictions: Mapping[str, Prediction], loads: Mapping[str, Load]
) -> tuple[dict[str, Prediction], dict[str, Load]]:
    """The predictions and the loads of all ranks added up; as they are where there is one process.

    Numbers are those of the whole batch. Gradients are the ranks' own, such that their mean, which
    is what a strategy makes of them, is the gradient of the whole batch. All ranks must have the
    same objectives and layers. Of a load only what the losses of its router need is added up.
    """
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if ranks == 1:
        return dict(predictions), dict(loads)
    own = [
        [p.loss * p.predicted, p.predicted, *([] if p.correct is None else [p.correct])]
        for p in predictions.values()
    ]
    own += [[getattr(load, name) for name in _BALANCED] for load in loads.values()]
    total = _summed([part for parts in own for part in parts], ranks)
    found = iter(total)
    whole = {}
    for name, prediction in predictions.items():
        loss, predicted = next(found), next(found).detach()
        correct = None if prediction.correct is None else next(found).detach()
        whole[name] = Prediction(loss / predicted.clamp(min=1), correct, predicted)
    balanced = {
        name: load._replace(**{what: next(found).to(load.prob.dtype) for what in _BALANCED})
        for name, load in loads.items()
    }
    return whole, balanced


def _summed(parts: list[Tensor], ranks: int) -> list[Tensor]:
    """Every part summed over the ranks, in float32, in one exchange; a part's gradient is that of
    the sum, times the number of ranks.
    """
    flat = torch.cat([part.float().flatten() for part in parts])
    total = flat.detach().clone()
    dist.all_reduce(total)
    total = total + (flat - flat.detach()) * ranks
    return [
        summed.view(part.shape)
        for summed, part in zip(total.split([part.numel() for part in parts]), parts, strict=True)
    ]
