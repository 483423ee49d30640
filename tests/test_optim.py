import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.moe import GeluExperts, MHMoE, TopKRouter, XMoEScorer
from mhmoe_mm.optim import (
    AdamW,
    WarmupConstant,
    WarmupCosine,
    WarmupInverseSqrt,
    WarmupLinear,
    layer_ids,
    parameter_groups,
)

RELEASED = json.loads((Path(__file__).parent / "beit3_optimizer.json").read_text())
RELEASED_NO_DECAY = ("*embed_positions.A.weight", "*vision_embed.cls_token", "logit_scale")


def rates(
    schedule: Callable[[Optimizer, int], LRScheduler], total_steps: int, lr: float = 1.0
) -> list[float]:
    """The learning rate of every step of a training."""
    param = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([param], lr=lr)
    scheduler = schedule(optimizer, total_steps)
    found = []
    for _ in range(total_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def released_parameters() -> list[tuple[str, nn.Parameter]]:
    return [(n, nn.Parameter(torch.zeros(p["shape"]))) for n, p in RELEASED["parameters"].items()]


def test_groups_are_those_of_the_released_beit3_code():
    named = released_parameters()
    groups = parameter_groups(
        named, 2.0, 0.05, no_decay=RELEASED_NO_DECAY, layer_decay=RELEASED["layer_decay"]
    )
    assert len(groups) == RELEASED["num_groups"]
    of = {id(p): group for group in groups for p in group["params"]}
    assert len(of) == len(named)
    for name, param in named:
        wanted = RELEASED["parameters"][name]
        assert of[id(param)]["lr"] == pytest.approx(2 * wanted["lr_scale"], rel=1e-9), name
        assert (of[id(param)]["weight_decay"] > 0) == wanted["decay"], name


def test_every_parameter_is_in_exactly_one_group_and_frozen_ones_in_none():
    named = released_parameters()
    for _, param in named[::3]:
        param.requires_grad_(False)
    groups = parameter_groups(named, 1.0, 0.05, layer_decay=0.9)
    found = [id(param) for group in groups for param in group["params"]]
    assert sorted(found) == sorted(id(param) for _, param in named if param.requires_grad)


def test_freezing_the_top_leaves_the_rates_of_the_rest_alone():
    def rate(freeze: bool) -> float:
        named = released_parameters()
        for name, param in named:
            param.requires_grad_(not freeze or "layers.0." in name)
        target = dict(named)["beit3.encoder.layers.0.ffn.A.fc1.weight"]
        groups = parameter_groups(named, 1.0, 0.05, layer_decay=0.5)
        return next(g["lr"] for g in groups if any(p is target for p in g["params"]))

    assert rate(True) == rate(False)


def tiny_net() -> BEiT3:
    def sparse(dim: int) -> nn.Module:
        def router(width: int, experts: int) -> TopKRouter:
            return TopKRouter(width, experts, scorer=XMoEScorer)

        def experts(number: int, width: int) -> GeluExperts:
            return GeluExperts(number, width, 13, sub_norm=True)

        return MHMoE(dim, num_heads=2, num_experts=3, router=router, experts=experts)

    layout = ReleasedLayout(dense=lambda dim: nn.Linear(dim, dim), sparse=sparse)
    return BEiT3(
        image_size=8, patch_size=4, vocab_size=17, dim=8, num_layers=2, num_heads=2, max_text=7,
        layout=layout,
    )  # fmt: skip


def test_our_net_has_embeddings_below_and_experts_in_their_block():
    names = [name for name, _ in tiny_net().named_parameters()]
    depth = dict(zip(names, layer_ids(names), strict=True))
    assert {d for n, d in depth.items() if n.startswith(("image_emb", "text_emb"))} == {0}
    assert {d for n, d in depth.items() if n.startswith("blocks.0.")} == {1}
    assert {d for n, d in depth.items() if n.startswith("blocks.1.")} == {2}
    assert any("scorer.embed" in n for n in names)
    assert {d for n, d in depth.items() if n.startswith("norm")} == {3}


def test_in_our_net_only_matrices_decay():
    net = tiny_net()
    decayed = {
        id(p)
        for group in parameter_groups(net.named_parameters(), 1.0, 0.05)
        if group["weight_decay"]
        for p in group["params"]
    }
    kept = {name for name, p in net.named_parameters() if id(p) not in decayed}
    for part in ("bias", "norm", ".b_in", ".b_out", "_embedding.cls", "_embedding.position"):
        matching = {name for name, _ in net.named_parameters() if part in name}
        assert matching, part
        assert matching <= kept, part
    assert not any(n.endswith((".w_in", ".w_out", "proj.weight", "token.weight")) for n in kept)


def test_the_head_learns_faster_and_the_heads_of_a_block_do_not():
    named = [
        (name, nn.Parameter(torch.zeros(3, 2)))
        for name in ("blocks.0.ffn.head_proj.weight", "text_embedding.token.weight", "head.weight")
    ]
    groups = parameter_groups(named, 0.5, 0.05, head_scale=20)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert [rate[id(param)] for _, param in named] == [0.5, 0.5, 10]
    assert {group["name"] for group in groups} == {"decay", "head/decay"}


def test_adamw_steps_like_torch_with_the_same_groups():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    one = AdamW(ours.named_parameters(), lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.5},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    two = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), eps=1e-3, fused=False)
    for _ in range(3):
        x = torch.randn(7, 5)
        for net, optimizer in ((ours, one), (theirs, two)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_adamw_is_fused_only_where_the_device_has_the_kernel():
    def fused(device: str, wanted: bool = True) -> bool:
        with torch.device(device):
            return AdamW(nn.Linear(3, 2).named_parameters(), fused=wanted).defaults["fused"]

    assert fused("cpu")
    assert not fused("cpu", wanted=False)
    assert not fused("meta")


def test_cosine_equals_the_released_schedule():
    def schedule(optimizer: Optimizer, total: int) -> LRScheduler:
        floor = RELEASED["min_lr"] / RELEASED["lr"]
        return WarmupCosine(optimizer, total, RELEASED["warmup_steps"], floor)

    wanted = RELEASED["learning_rates"]
    assert rates(schedule, len(wanted), RELEASED["lr"]) == pytest.approx(
        wanted, rel=1e-6, abs=1e-12
    )


WARM, TOTAL = 7, 29


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        (
            lambda o, n: WarmupCosine(o, n, WARM, floor=0.1),
            lambda i: 0.1 + 0.5 * 0.9 * (1 + math.cos(math.pi * i / (TOTAL - WARM))),
        ),
        (
            lambda o, n: WarmupLinear(o, n, WARM, floor=0.1),
            lambda i: 1 - 0.9 * i / (TOTAL - WARM),
        ),
        (lambda o, n: WarmupConstant(o, n, WARM), lambda i: 1.0),
        (lambda o, n: WarmupInverseSqrt(o, n, WARM), lambda i: math.sqrt(WARM / (WARM + i))),
    ],
)
def test_schedules_equal_their_closed_forms(schedule, after):
    warm = torch.linspace(0, 3, WARM, dtype=torch.float64).tolist()
    wanted = warm + [3 * after(i) for i in range(TOTAL - WARM)]
    assert rates(schedule, TOTAL, lr=3.0) == pytest.approx(wanted, abs=1e-12)


SCHEDULES = [WarmupCosine, WarmupLinear, WarmupConstant, WarmupInverseSqrt]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 11])
def test_schedules_never_leave_zero_to_peak_and_stay_finite_beyond_the_end(schedule, warmup: int):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    scheduler = schedule(optimizer, 11, warmup)
    for _ in range(17):
        assert 0 <= optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("epochs", "warm"), [(10, 1), (20, 5), (15, 3), (50, 5)])
@pytest.mark.parametrize("steps", [7, 31])
def test_a_share_warms_up_for_its_epochs_whatever_the_batch_size(schedule, epochs, warm, steps):
    shared = rates(lambda o, n: schedule(o, n, warmup_share=warm / epochs), epochs * steps)
    assert shared == rates(lambda o, n: schedule(o, n, warmup_steps=warm * steps), epochs * steps)
    assert shared.index(max(shared)) == warm * steps - 1


def test_a_schedule_scales_every_group_alike():
    optimizer = AdamW(released_parameters(), lr=1.0, layer_decay=0.65)
    start = [group["lr"] for group in optimizer.param_groups]
    schedule = WarmupLinear(optimizer, 11, floor=0.5)
    for _ in range(11):
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([s / 2 for s in start])


@pytest.mark.parametrize(
    ("total", "warmup", "floor", "sentence"),
    [
        (10, 11, 0.0, "warmup_steps is 11, but training has 10 steps"),
        (10, -1, 0.0, "warmup_steps is -1"),
        (-1, 0, 0.0, "got -1: set trainer.max_steps"),
        (10, 3, 1.5, "floor is a share .* but is 1.5"),
    ],
)
def test_impossible_schedules_are_refused_with_a_sentence(total, warmup, floor, sentence):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(ValueError, match=sentence):
        WarmupCosine(optimizer, total, warmup, floor)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"warmup_share": 1.5}, "warmup_share is a share of the training, .* but is 1.5"),
        ({"warmup_share": -0.1}, "but is -0.1"),
        ({"warmup_steps": 3, "warmup_share": 0.5}, "warmup_steps=3 and as warmup_share=0.5"),
    ],
)
def test_impossible_shares_are_refused_with_a_sentence(schedule, options, sentence):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    with pytest.raises(ValueError, match=sentence):
        schedule(optimizer, 11, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer_decay": 0.0}, "layer_decay must lie in"),
        ({"layer_decay": 1.1}, "but is 1.1"),
        ({"head_scale": -2.0}, "head_scale must be positive, but is -2.0"),
    ],
)
def test_impossible_groups_are_refused_with_a_sentence(options: dict, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        parameter_groups(released_parameters(), 1.0, 0.05, **options)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="None of the 0 parameters is trainable"):
        AdamW([])


class Trainable:
    """How a task takes its factories."""

    def __init__(
        self,
        optimizer: Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer] = AdamW,
        schedule: Callable[[Optimizer, int], LRScheduler] | None = None,
    ):
        self.optimizer, self.schedule = optimizer, schedule


@pytest.mark.parametrize(
    "schedule", ["WarmupCosine", "WarmupLinear", "WarmupConstant", "WarmupInverseSqrt"]
)
def test_a_config_file_makes_the_factories(schedule: str):
    parser = ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_class_arguments(Trainable, "task")
    config = parser.parse_string(
        f"""
        task:
          optimizer:
            class_path: mhmoe_mm.optim.AdamW
            init_args: {{lr: 0.25, no_decay: ["*weight"]}}
          schedule:
            class_path: mhmoe_mm.optim.{schedule}
            init_args: {{warmup_steps: 3}}
        """
    )
    task = parser.instantiate(config).task
    optimizer = task.optimizer(nn.Linear(3, 2).named_parameters())
    scheduler = task.schedule(optimizer, 11)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0]
    assert optimizer.param_groups[0]["initial_lr"] == 0.25
    assert type(scheduler).__name__ == schedule
