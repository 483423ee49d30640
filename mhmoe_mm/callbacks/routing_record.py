"""Raw routing: which experts read every sub-token of every token, recorded while a network runs.

Nothing of the network is changed while it is recorded, but that it runs uncompiled: hooks watch the
network (what it reads), its sparse layers (which part of the sequence passes) and their routers
(the plan and the load). Numbers go to the CPU as small integers after every layer, so what is on
the device at a time is one layer's.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mhmoe_mm.models.beit3 import BEiT3, MultiwayInput
from mhmoe_mm.models.branches import MultiwayFFN, Parts
from mhmoe_mm.models.embeddings import ImageEmbedding
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.moe.routing import Load, Plan, Router
from mhmoe_mm.moe.sparse_layers import sparse_layers

NOWHERE = -1
"""The expert of an assignment that was refused, or not wanted."""


class LayerRouting(NamedTuple):
    """What one layer decided in one forward."""

    rows: np.ndarray
    """int32 (routed), which tokens passed: numbers in the list of the forward's real tokens."""
    expert: np.ndarray
    """int8 or int16 (routed heads choices), `NOWHERE` where there is none. Choices are in order
    where the router chooses for tokens; experts that choose have no order."""
    weight: np.ndarray | None
    """float16 (routed heads choices), 0 where there is none; None where it was not read."""


class Forward(NamedTuple):
    """One forward of a network: what it read and where that went."""

    image: Tensor | None
    """float (batch 3 height width), as the network reads it."""
    masked: Tensor | None
    """bool (batch patches)."""
    text: Tensor | None
    """int64 (batch seq_text)."""
    real: np.ndarray
    """bool (batch seq), false at padding, which no layer routes."""
    split: int
    """Image tokens in front."""
    layers: dict[str, LayerRouting]
    """By the layer's path in the network, as loads are."""
    loads: dict[str, Load]
    """On the CPU; of forwards that ran together, with the first that passed the layer."""


@dataclass
class _Now:
    """A forward that is under way."""

    image: Tensor | None
    masked: Tensor | None
    text: Tensor | None
    real: np.ndarray
    split: int
    number: np.ndarray
    """int64 (batch seq), every real token's place among the real ones."""
    layers: dict[str, LayerRouting] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)

    def end(self) -> Forward:
        """What it came to."""
        image, masked, text = (
            None if given is None else given.detach().cpu()
            for given in (self.image, self.masked, self.text)
        )
        return Forward(image, masked, text, self.real, self.split, self.layers, self.loads)


class RoutingRecorder:
    """Records the forwards of a network.

    Forwards that go on from earlier ones (a caption that is being written) are left out, as the
    loads of a step leave them out.

    Args:
        net: a `BEiT3` or a `Decoder`, or another network whose `forward` takes the same names.
    """

    def __init__(self, net: nn.Module):
        self.net = net
        self.done: list[Forward] = []
        """Whoever reads it empties it."""
        self.now: list[_Now] = []
        """What is under way, for the hooks; several where they run together."""
        self.passing: list[tuple[_Now, slice]] = []
        """What the layer that runs reads, one after the other: which places of every row."""

    @contextmanager
    def recording(self) -> Iterator["RoutingRecorder"]:
        """Record what runs inside."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def start(self) -> None:
        """Put the hooks in place."""
        branch_of: dict[str, tuple[MultiwayFFN, str]] = {}
        for name, module in self.net.named_modules():
            if isinstance(module, MultiwayFFN):
                branch_of |= {f"{name}.{branch}": (module, branch) for branch in module}
        hooks = [
            self.net.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.net.register_forward_hook(self._end, always_call=False),
        ]
        if isinstance(self.net, BEiT3):
            hooks.append(self.net.register_together_hooks(self._begin_together, self._end))
        for name, layer in sparse_layers(self.net).items():
            passing = _Passing(self, branch_of.get(name))
            hooks.append(layer.register_forward_pre_hook(passing, with_kwargs=True))
            hooks.append(layer.router.register_forward_hook(_Routed(self, name, layer)))
        self._hooks = hooks
        # Compiled code was made without the hooks and would go on without them.
        self._compiled = {
            module: module._compiled_call_impl
            for module in self.net.modules()
            if module._compiled_call_impl is not None
        }
        for module in self._compiled:
            module._compiled_call_impl = None

    def stop(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        for module, compiled in self._compiled.items():
            module._compiled_call_impl = compiled
        self.now = []

    def take(self) -> list[Forward]:
        """The forwards since the last call, in order."""
        done, self.done = self.done, []
        return done

    def _begin(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _named(net, args, kwargs)
        self.now = [] if given.get("past") is not None else [_begun(net, given)]

    def _end(self, net: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.done += [now.end() for now in self.now]
        self.now = []

    def _begin_together(self, net: nn.Module, sequences: tuple[MultiwayInput, ...]) -> None:
        self.now = [_begun(net, one._asdict()) for one in sequences]


def _begun(net: nn.Module, given: dict[str, Any]) -> _Now:
    """A forward of these inputs."""
    image: Tensor | None = given.get("image")
    text: Tensor | None = given["text"] if "text" in given else given.get("token")
    read = image if text is None else text
    assert read is not None, "the network refuses an input of nothing"
    split = 0
    if image is not None:
        embedding = net.get_submodule("image_embedding")
        assert isinstance(embedding, ImageEmbedding)
        split = 1 + embedding.num_patches
    real = np.ones((len(read), split + (0 if text is None else text.shape[1])), dtype=bool)
    if (pad := given.get("pad")) is not None:
        real[:, split:] = ~_array(pad)
    if (keep := given.get("keep")) is not None:
        real &= _array(keep)
    number = np.cumsum(real).reshape(real.shape) - 1
    return _Now(image, given.get("masked"), text, real, split, number)


class _Passing:
    """Before a sparse layer runs: which parts of the sequences it reads."""

    def __init__(self, recorder: RoutingRecorder, branch: tuple[MultiwayFFN, str] | None):
        self.recorder, self.branch = recorder, branch

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.recorder.passing = [
            (now, part)
            for now in self.recorder.now
            for branch, part in self._parts(now)
            if self.branch is None or branch == self.branch[1]
        ]

    def _parts(self, now: _Now) -> Parts:
        if self.branch is None:
            return [("", slice(None))]
        return self.branch[0].route.parts(now.split, now.real.shape[1])


class _Routed:
    """After a router has run, inside of a layer: what it decided."""

    def __init__(self, recorder: RoutingRecorder, name: str, layer: SparseMoE | MHMoE):
        self.recorder, self.name = recorder, name
        self.heads = layer.num_heads if isinstance(layer, MHMoE) else 1

    def __call__(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not (passing := self.recorder.passing):
            return
        assert isinstance(router, Router)
        plan, load = output
        real = [now.real[:, part] for now, part in passing]
        total = sum(each.size for each in real)
        table = dense(plan, total * self.heads, router.num_experts)
        expert, weight = (_array(each).reshape(total, self.heads, -1) for each in table)
        end = 0
        for (now, part), own in zip(passing, real, strict=True):
            start, end = end, end + own.size
            routed = own.flatten()
            now.layers[self.name] = LayerRouting(
                now.number[:, part][own].astype(np.int32),
                expert[start:end][routed],
                weight[start:end][routed],
            )
        own = {name: getattr(load.detach(), name).cpu() for name in Load._fields[:-1]}
        first, _ = passing[0]
        first.loads[self.name] = Load(**own, names=load.names)


def dense(plan: Plan, n: int, num_experts: int) -> tuple[Tensor, Tensor]:
    """A plan as a table: (n choices) experts, int8 if they fit, and float16 weights of every
    token.
    """
    small = torch.int8 if num_experts < 128 else torch.int16
    expert = torch.where(plan.expert == num_experts, NOWHERE, plan.expert)
    if plan.per_token:
        shape = (n, plan.per_token)
        return expert.view(shape).to(small), plan.weight.view(shape).to(torch.float16)
    there: Bool[Tensor, " assign"] = expert != NOWHERE
    token, order = plan.token[there].sort(stable=True)
    chosen, weight = expert[there][order], plan.weight[there][order]
    count = torch.bincount(token, minlength=n)
    before: Int[Tensor, " n"] = count.cumsum(0) - count
    place = torch.arange(len(token), device=token.device) - before[token]
    width = max(int(count.max()), 1) if len(count) else 1
    table = torch.full((n, width), NOWHERE, dtype=small, device=expert.device)
    weights = torch.zeros((n, width), dtype=torch.float16, device=expert.device)
    table[token, place] = chosen.to(small)
    weights[token, place] = weight.to(torch.float16)
    return table, weights


def _named(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = list(inspect.signature(type(net).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
