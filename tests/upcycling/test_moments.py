"""AdamW's moments of a dense network as those of a sparse one: what each of them stands for."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mhmoe_mm.checkpoint.moments import Moments, as_tensors, load_moments
from mhmoe_mm.models.ffn import GeluFFN, SwiGLUFFN
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.moe import GeluExperts, MHMoE, SparseMoE, SwiGLUExperts, TopKRouter
from mhmoe_mm.optim import AdamW
from mhmoe_mm.storage.exported import write_exported
from mhmoe_mm.upcycling.filling import Start
from mhmoe_mm.upcycling.moments import SOURCES, upcycled_moments
from mhmoe_mm.upcycling.net import upcycle_net
from tests.upcycling.test_upcycling import DIM, HIDDEN, SUM_1, encoder, filled, shaken, tokens

RAW = partial(TopKRouter, top_k=2)
COPIES = partial(SparseMoE, num_experts=5, router=SUM_1, experts=partial(GeluExperts, hidden=28))


class Model(nn.Module):
    """A network where tasks have theirs, and a head."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.head = net, nn.Linear(DIM, 3)


def gradients(net: nn.Module) -> dict[str, torch.Tensor]:
    """Of a loss of some tokens' answers."""
    said = net(tokens())
    y = said[0] if isinstance(said, tuple) else said
    draw = torch.Generator().manual_seed(9)
    net.zero_grad()
    (y.view(-1, DIM) * torch.randn(y.numel() // DIM, DIM, generator=draw)).sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("dense", "experts", "router", "hidden", "sub_norm"),
    [
        (GeluFFN, GeluExperts, SUM_1, HIDDEN, False),
        (GeluFFN, GeluExperts, SUM_1, HIDDEN, True),
        (GeluFFN, GeluExperts, SUM_1, HIDDEN // 2, False),
        (GeluFFN, GeluExperts, RAW, HIDDEN, False),
        (GeluFFN, GeluExperts, RAW, HIDDEN // 2, False),
        (SwiGLUFFN, SwiGLUExperts, SUM_1, HIDDEN // 2, False),
    ],
)
def test_the_gradients_of_all_copies_of_a_weight_add_up_to_what_each_of_them_has_a_moment_of(
    dense, experts, router, hidden, sub_norm
):
    """So the scale of the answers is allowed for, and the share of the tokens is not."""
    torch.manual_seed(1)
    norm = {"sub_norm": sub_norm} if dense is GeluFFN else {}
    net = shaken(dense(DIM, HIDDEN, **norm))
    layer = filled(net, SparseMoE(DIM, 6, router, partial(experts, hidden=hidden, **norm)))
    given = {
        f"net.ffn.{name}": Moments(grad, grad.square(), torch.tensor(7.0))
        for name, grad in gradients(net).items()
    }
    made = upcycled_moments(
        given, nn.ModuleDict({"ffn": net}), nn.ModuleDict({"ffn": layer}), ["ffn"]
    )
    found, slices = gradients(layer), HIDDEN // hidden
    names = {name for name in found if name.startswith("experts.")}
    assert made.keys() == {f"net.ffn.{name}" for name in names}
    assert len(names) == len(given)
    for name in names:
        mean, square, step = made[f"net.ffn.{name}"]
        copies = 1 if name == "experts.b_out" else slices  # every expert has all of it
        total = found[name].unflatten(0, (-1, copies)).sum(dim=0)
        wanted = total.repeat(6 // copies, *[1] * (total.ndim - 1))
        assert (mean - wanted).norm() <= 2e-3 * wanted.norm()
        torch.testing.assert_close(square, mean.square())
        assert step == 7


def moments_of(model: nn.Module, seed: int = 3) -> dict[str, Moments]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: Moments(
            0.1 * torch.randn(p.shape, generator=draw),
            0.1 * torch.rand(p.shape, generator=draw),
            torch.tensor(11.0),
        )
        for name, p in model.named_parameters()
    }


def test_what_is_copied_keeps_its_moments_and_routers_have_none():
    dense, sparse = shaken(encoder(SharedLayout)), encoder(SharedLayout, COPIES)
    given = moments_of(Model(dense))
    turned = [layer.path for layer in upcycle_net(dense, sparse, Start())]
    assert len(turned) == 2
    made = upcycled_moments(given, dense, sparse, turned)
    fresh = {name for name, _ in Model(sparse).named_parameters()} - made.keys()
    assert fresh == {f"net.{path}.router.scorer.weight" for path in turned}
    for name, held in made.items():
        if ".experts." not in name:
            assert held is given[name]
            continue
        place, _, own = name.partition("experts.")
        old = given[place + SOURCES[own]]
        for new, was in zip(held[:2], old[:2], strict=True):
            assert new.shape == (5, *(was.T if was.ndim == 2 else was).shape)
            assert all(torch.equal(expert.T if was.ndim == 2 else expert, was) for expert in new)


def test_where_there_is_no_such_map_a_state_is_left_out():
    dense = shaken(encoder(SharedLayout))
    heads = partial(MHMoE, num_experts=8, router=RAW, experts=partial(GeluExperts, hidden=9))
    sparse = encoder(SharedLayout, heads)
    turned = [layer.path for layer in upcycle_net(dense, sparse, Start())]
    made = upcycled_moments(moments_of(Model(dense)), dense, sparse, turned)
    assert made
    assert not [name for name in made if any(path in name for path in turned)]

    torch.manual_seed(1)
    net = shaken(GeluFFN(DIM, HIDDEN, sub_norm=True))  # whose norm becomes constants
    layer = filled(net, COPIES(DIM))
    given = {f"net.ffn.{name}": held for name, held in moments_of(net).items()}
    pair = [nn.ModuleDict({"ffn": module}) for module in (net, layer)]
    made = upcycled_moments(given, *pair, ["ffn"])
    assert made.keys() == {"net.ffn.experts.w_in", "net.ffn.experts.b_in"}


@pytest.fixture
def folder(tmp_path):
    """folder(moments) -> an exported model that holds them, its weights left out."""

    def make(moments, name: str = "out"):
        config = {"mhmoe_mm": "0", "task": {}}
        write_exported(
            tmp_path / name, config, {"a": torch.zeros(1)}, None, {}, "", as_tensors(moments)
        )
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("fused", [True, False])
def test_the_first_update_is_the_next_one_of_the_dense_training(folder, fused):
    """Of all that is copied, where the gradients are the same; without the state it is not."""
    dense, sparse = Model(shaken(encoder(SharedLayout))), Model(encoder(SharedLayout, COPIES))
    optimizer = AdamW(dense.named_parameters(), layer_decay=0.8, fused=fused)
    draw = torch.Generator().manual_seed(3)
    for _ in range(4):
        for param in dense.parameters():
            param.grad = torch.randn(param.shape, generator=draw)
        optimizer.step()
    given = {
        name: Moments(**{what: optimizer.state[p][what] for what in Moments._fields})
        for name, p in dense.named_parameters()
    }
    turned = [layer.path for layer in upcycle_net(dense.net, sparse.net, Start())]
    sparse.head.load_state_dict(dense.head.state_dict())
    path = folder(upcycled_moments(given, dense.net, sparse.net, turned))
    fresh = AdamW(sparse.named_parameters(), layer_decay=0.8, fused=fused)
    names = [name for name, _ in sparse.named_parameters()]
    said = load_moments(fresh, sparse.named_parameters(), path, names)
    total = len(names)
    assert said == (
        f"optimizer's state from {path}: {total - 2} of {total} parameters go on with theirs, "
        "2 start fresh"
    )
    old = dict(dense.named_parameters())
    for param in old.values():
        param.grad = torch.randn(param.shape, generator=draw)
    for name, param in sparse.named_parameters():
        place, inside, own = name.partition("experts.")
        if inside:
            grad = old[place + SOURCES[own]].grad
            param.grad = (grad.T if grad.ndim == 2 else grad).expand_as(param).contiguous()
        else:
            param.grad = old[name].grad if name in old else torch.ones_like(param)
    start = {name: param.detach().clone() for name, param in sparse.named_parameters()}
    optimizer.step()
    fresh.step()
    for name, param in sparse.named_parameters():
        place, inside, own = name.partition("experts.")
        state = fresh.state[param]
        if "router" in name:
            assert state["step"] == 1
            continue
        wanted = old[place + SOURCES[own] if inside else name]
        if inside and wanted.ndim == 2:
            wanted = wanted.T
        torch.testing.assert_close(param, wanted.expand_as(param), atol=1e-7, rtol=1e-6)
        assert state["step"] == 5
        assert state["step"].dtype == torch.float32
    # A state that is not there makes another step: the test above can fail.
    bare = Model(encoder(SharedLayout, COPIES))
    bare.load_state_dict(start)
    for own_param, param in zip(bare.parameters(), sparse.parameters(), strict=True):
        own_param.grad = param.grad
    AdamW(bare.named_parameters(), layer_decay=0.8, fused=fused).step()
    apart = (bare.head.weight - sparse.head.weight).abs().max()
    assert apart > 1e-5


def test_what_starts_fresh_elsewhere_starts_fresh_here_too(folder):
    model = nn.ModuleDict({"net": nn.Linear(5, 3), "head": nn.Linear(3, 2)})
    path = folder(moments_of(model))
    optimizer = AdamW(model.named_parameters())
    loaded = {"net.weight", "net.bias"}
    assert "2 of 4 parameters" in str(
        load_moments(optimizer, model.named_parameters(), path, loaded)
    )
    assert set(optimizer.state) == set(model["net"].parameters())
    assert load_moments(optimizer, model.named_parameters(), folder({}, "bare"), loaded) is None


def test_a_state_that_does_not_fit_is_refused(folder, tmp_path):
    model = nn.Linear(5, 3)
    path, names = folder(moments_of(model)), {"weight", "bias"}
    amsgrad = torch.optim.AdamW(model.parameters(), amsgrad=True)
    for optimizer, kind in ((torch.optim.SGD(model.parameters()), "SGD"), (amsgrad, "AdamW")):
        with pytest.raises(ValueError, match=f"{kind} as it is set keeps another: choose mhmoe"):
            load_moments(optimizer, model.named_parameters(), path, names)
    other = nn.Linear(7, 3)
    with pytest.raises(ValueError, match=r"of weight has the shape \(3, 5\) .* \(3, 7\) here"):
        load_moments(AdamW(other.named_parameters()), other.named_parameters(), path, names)
    half = {n: t for n, t in as_tensors(moments_of(model)).items() if n != "exp_avg_sq/bias"}
    save_file(half, tmp_path / "out/optimizer.safetensors")
    with pytest.raises(ValueError, match="exp_avg_sq/bias is missing"):
        load_moments(AdamW(model.named_parameters()), model.named_parameters(), path, names)
