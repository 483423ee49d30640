"""Optimizers and schedules for a config file: which parameter learns how fast, and when.

Both are classes that a YAML names by class_path. What only the program knows comes first and is
passed in Python: an optimizer gets the named parameters, a schedule gets the optimizer and the
number of steps of the whole training.

```yaml
optimizer: {class_path: mhmoe_mm.optim.AdamW, init_args: {lr: 1.0e-3, weight_decay: 0.05}}
schedule: {class_path: mhmoe_mm.optim.WarmupCosine, init_args: {warmup_steps: 10000}}
```

The warm-up is a number of steps, or with `warmup_share` a share of the training: one epoch of ten
is 0.1, whatever the batch size. Of the two only one is given.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NO_DECAY = ("*.cls", "*.mask", "*.position", "*logit_scale", "*.cls_token", "*.pos_embed")
"""What weight decay leaves alone by default, beside biases, norms and all of one dimension; the
last two are timm's names."""

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")
# Stacked experts hold a vector each: two dimensions, and still biases and norms.
_VECTOR = re.compile(r"(?:^|\.)(?:bias|b_\w+|\w*norm\.weight)$")
_FUSED = {"cpu", "cuda", "mps", "xpu"}


def layer_ids(names: Sequence[str]) -> list[int]:
    """How deep each parameter sits: embeddings 0, block i at i + 1, the rest behind the last block.

    Read from the names, as the released BEiT-3 code does: `blocks.<i>.` or `layers.<i>.` is a
    block, and what else has `embed` in it an embedding.
    """
    block = [_BLOCK.search(name) for name in names]
    last = max((int(found[1]) for found in block if found), default=-1) + 2
    return [
        int(found[1]) + 1 if found else 0 if "embed" in name else last
        for name, found in zip(names, block, strict=True)
    ]


def decays(name: str, param: nn.Parameter, no_decay: Sequence[str]) -> bool:
    """Whether weight decay applies: not to biases, norms, or names matching `no_decay`."""
    vector = param.ndim < 2 or _VECTOR.search(name) is not None
    return not vector and not any(fnmatchcase(name, pattern) for pattern in no_decay)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    no_decay: Sequence[str] = NO_DECAY,
    layer_decay: float = 1.0,
    head: Sequence[str] = ("*head*",),
    head_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, one per learning rate and kind of decay.

    `no_decay` and `head` are patterns of whole names (`*` matches anything). A parameter `d` layers
    from the last learns `layer_decay ** d` times as fast; one outside the blocks that matches
    `head`, `head_scale` times. Each group has a name, such as `layer03/no_decay`, which learning
    rate monitors show.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], but is {layer_decay}.")
    if head_scale <= 0:
        raise ValueError(f"head_scale must be positive, but is {head_scale}.")
    # Depth is read before frozen parameters are left out: freezing the top must not move the rest.
    every = list(named)
    ids = layer_ids([name for name, _ in every])
    last = max(ids, default=0)
    groups: dict[tuple[str, float, float], list[nn.Parameter]] = defaultdict(list)
    for (name, param), layer in zip(every, ids, strict=True):
        if not param.requires_grad:
            continue
        # Inside a block `head` means attention or sub-tokens, never the task's head.
        in_head = head_scale != 1 and layer == last and any(fnmatchcase(name, p) for p in head)
        decayed = decays(name, param, no_decay)
        label = [f"layer{layer:02d}"] if layer_decay < 1 else []
        label += ["head"] if in_head else []
        label += ["decay" if decayed else "no_decay"]
        scale = layer_decay ** (last - layer) * (head_scale if in_head else 1.0)
        groups["/".join(label), lr * scale, weight_decay if decayed else 0.0].append(param)
    if not groups:
        raise ValueError(f"None of the {len(every)} parameters is trainable.")
    return [
        {"name": label, "params": params, "lr": rate, "weight_decay": decay}
        for (label, rate, decay), params in sorted(groups.items(), key=lambda item: item[0])
    ]


class AdamW(torch.optim.AdamW):
    """AdamW over `parameter_groups`, in one fused kernel where the device has it."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.05,
        no_decay: Sequence[str] = NO_DECAY,
        layer_decay: float = 1.0,
        head: Sequence[str] = ("*head*",),
        head_scale: float = 1.0,
        fused: bool = True,
    ):
        groups = parameter_groups(named, lr, weight_decay, no_decay, layer_decay, head, head_scale)
        usable = all(p.device.type in _FUSED for group in groups for p in group["params"])
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=fused and usable)
        # The kernel could unscale gradients itself, and Lightning then refuses to clip them, under
        # bf16-mixed too, where nothing is scaled: leave unscaling to the trainer.
        self._step_supports_amp_scaling = False


def _num_warmup(total_steps: int, warmup_steps: int, warmup_share: float) -> int:
    """Steps of the warm-up, however it was given."""
    if total_steps < 1:
        raise ValueError(
            f"A schedule needs the number of training steps, but got {total_steps}: "
            "set trainer.max_steps."
        )
    if warmup_steps and warmup_share:
        raise ValueError(
            f"The warm-up is given as warmup_steps={warmup_steps} and as "
            f"warmup_share={warmup_share}: leave one of them out, or set it to 0."
        )
    if not 0 <= warmup_share <= 1:
        raise ValueError(
            f"warmup_share is a share of the training, in [0, 1], but is {warmup_share}."
        )
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps}, but training has {total_steps} steps: "
            f"choose from 0 to {total_steps}."
        )
    return warmup_steps or round(warmup_share * total_steps)


def _warmed_up(
    num_warmup: int, after: Callable[[int], float], floor: float = 0.0
) -> Callable[[int], float]:
    """Share of the peak learning rate by step: a line up, then `after(i)`, `i` steps past the line.

    The line is `linspace(0, 1, num_warmup)`: the first step has learning rate 0, as in the released
    BEiT-3 code.
    """
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is a share of the peak learning rate, in [0, 1], but is {floor}.")

    def share(step: int) -> float:
        if step < num_warmup:
            return step / max(num_warmup - 1, 1)
        return floor + (1 - floor) * after(step - num_warmup)

    return share


class WarmupCosine(LambdaLR):
    """Warm-up, then half a cosine from the peak down to `floor` times the peak."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        floor: float = 0.0,
        warmup_share: float = 0.0,
    ):
        warmup = _num_warmup(total_steps, warmup_steps, warmup_share)
        span = max(total_steps - warmup, 1)

        def after(i: int) -> float:
            return (1 + math.cos(math.pi * min(i / span, 1))) / 2

        super().__init__(optimizer, _warmed_up(warmup, after, floor))


class WarmupLinear(LambdaLR):
    """Warm-up, then a straight line from the peak down to `floor` times the peak."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        floor: float = 0.0,
        warmup_share: float = 0.0,
    ):
        warmup = _num_warmup(total_steps, warmup_steps, warmup_share)
        span = max(total_steps - warmup, 1)

        def after(i: int) -> float:
            return 1 - min(i / span, 1)

        super().__init__(optimizer, _warmed_up(warmup, after, floor))


class WarmupConstant(LambdaLR):
    """Warm-up, then the peak for ever."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_share: float = 0.0,
    ):
        warmup = _num_warmup(total_steps, warmup_steps, warmup_share)
        super().__init__(optimizer, _warmed_up(warmup, lambda i: 1.0))


class WarmupInverseSqrt(LambdaLR):
    """Warm-up, then `sqrt(warm-up / step)` of the peak: a decay that need not know the end."""

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_share: float = 0.0,
    ):
        warmup = _num_warmup(total_steps, warmup_steps, warmup_share)
        start = max(warmup, 1)

        def after(i: int) -> float:
            return math.sqrt(start / (start + i))

        super().__init__(optimizer, _warmed_up(warmup, after))
