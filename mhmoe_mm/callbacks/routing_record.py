"""Raw routing: which experts read every sub-token of every token, recorded while a network runs.

Nothing of the network is changed while it is recorded, but that it runs uncompiled: hooks watch the
network (what it reads), its sparse layers (which part of the sequence passes) and their routers
(the plan and the load). Numbers go to the CPU as small integers after every layer, so what is on
the device at a time is one layer's.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from mhmoe_mm.models.branches import MultiwayFFN
from mhmoe_mm.moe.mh_moe import MHMoE, SparseMoE
from mhmoe_mm.moe.routing import Load, Plan, Router

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
    """On the CPU."""


class Description(NamedTuple):
    """What a sparse layer is."""

    name: str
    block: int
    branch: str
    kind: str
    num_experts: int
    num_heads: int
    router: str


def sparse_layers(net: nn.Module) -> dict[str, SparseMoE | MHMoE]:
    """The sparse layers of a network by path; those inside another one are part of it."""
    found: dict[str, SparseMoE | MHMoE] = {}
    for name, module in net.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, SparseMoE | MHMoE) and not inside:
            found[name] = module
    return found


def described(net: nn.Module) -> list[Description]:
    """The sparse layers of a network, in order."""
    return [_description(name, layer) for name, layer in sparse_layers(net).items()]


def _description(name: str, layer: SparseMoE | MHMoE) -> Description:
    parts = name.split(".")
    block = next((int(part) for part in parts if part.isdigit()), 0)
    branch = "" if parts[-1] == "ffn" else parts[-1]
    heads = layer.num_heads if isinstance(layer, MHMoE) else 1
    router = layer.router
    return Description(
        name, block, branch, type(layer).__name__, router.num_experts, heads, type(router).__name__
    )


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
        self._now: dict[str, Any] | None = None
        self._part: dict[str, tuple[Tensor | None, int, int]] = {}

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
        for name, layer in sparse_layers(self.net).items():
            passing = _Passing(self, name, branch_of.get(name))
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
        self._now = None

    def take(self) -> list[Forward]:
        """The forwards since the last call, in order."""
        done, self.done = self.done, []
        return done

    def _begin(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _named(net, args, kwargs)
        self._now = None
        if given.get("past") is not None:
            return
        image = given.get("image")
        text = given["text"] if "text" in given else given.get("token")
        split = 0
        if image is not None:
            split = 1 + net.image_embedding.num_patches  # pyright: ignore
        batch = len(image if image is not None else text)
        length = split + (0 if text is None else text.shape[1])
        real = np.ones((batch, length), dtype=bool)
        if (pad := given.get("pad")) is not None:
            real[:, split:] = ~_array(pad)
        if (keep := given.get("keep")) is not None:
            real &= _array(keep)
        self._now = {
            "image": image,
            "masked": given.get("masked"),
            "text": text,
            "real": real,
            "split": split,
            "number": np.cumsum(real).reshape(real.shape) - 1,
            "layers": {},
            "loads": {},
        }

    def _end(self, net: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._now is None:
            return
        now, self._now = self._now, None
        fields = {name: now[name] for name in Forward._fields}
        fields |= {name: _cpu(now[name]) for name in ("image", "masked", "text")}
        self.done.append(Forward(**fields))

    def passes(self, name: str, start: int, x: Tensor) -> None:
        """A layer is about to read a part of the sequence, from `start` on."""
        if self._now is not None:
            self._now["part"] = (name, start, x.shape[1])

    def routed(self, name: str, heads: int, plan: Plan, load: Load, num_experts: int) -> None:
        """A layer's router has decided."""
        if self._now is None:
            return
        there, start, length = self._now["part"]
        assert there == name, "a layer's router runs inside of the layer"
        batch = len(self._now["real"])
        n = batch * length * heads
        expert, weight = dense(plan, n, num_experts)
        shape = (batch, length, heads, -1)
        real = self._now["real"][:, start : start + length]
        number = self._now["number"][:, start : start + length]
        self._now["layers"][name] = LayerRouting(
            number[real].astype(np.int32),
            _array(expert).reshape(shape)[real],
            _array(weight).reshape(shape)[real],
        )
        detached = load.detach()
        parts = {field: _cpu(getattr(detached, field)) for field in Load._fields[:-1]}
        self._now["loads"][name] = Load(**parts, names=load.names)


class _Passing:
    """Before a sparse layer runs: which part of the sequence it reads."""

    def __init__(
        self, recorder: RoutingRecorder, name: str, branch: tuple[MultiwayFFN, str] | None
    ):
        self.recorder, self.name, self.branch = recorder, name, branch

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["x"]
        now, start = self.recorder._now, 0
        if self.branch is not None and now is not None:
            ffn, branch = self.branch
            parts = dict(ffn.route.parts(now["split"], now["real"].shape[1]))
            start = parts[branch].start or 0
        self.recorder.passes(self.name, start, x)


class _Routed:
    """After a router has run."""

    def __init__(self, recorder: RoutingRecorder, name: str, layer: SparseMoE | MHMoE):
        self.recorder, self.name = recorder, name
        self.heads = layer.num_heads if isinstance(layer, MHMoE) else 1

    def __call__(self, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        assert isinstance(router, Router)
        plan, load = output
        self.recorder.routed(self.name, self.heads, plan, load, router.num_experts)


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


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu()
