"""How fast the parameters of a task learn, against the released code's groups of the same model."""

import json
from pathlib import Path

import pytest
import torch

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.models.released import our_head_names, our_names
from mhmoe_mm.optim import parameter_groups
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA
from tests.tasks.batches import small_net

RELEASED = json.loads((Path(__file__).parents[1] / "beit3_optimizer.json").read_text())
RELEASED_NO_DECAY = ("*image_embedding.position", "*.cls", "*logit_scale")


def by_name(task, **options) -> dict[str, tuple[float, bool]]:
    """Learning rate and whether weight decay applies, of every parameter."""
    groups = parameter_groups(task.named_parameters(), lr=1.0, weight_decay=0.1, **options)
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"] > 0)
        for group in groups
        for parameter in group["params"]
    }


def test_layers_of_a_retrieval_task_learn_as_fast_as_in_the_released_code():
    net = BEiT3(ReleasedLayout(dense=lambda dim: GeluFFN(dim, 64)), 32, 8, 50, 32, 2, 4, 14)
    found = by_name(Retrieval(net), layer_decay=RELEASED["layer_decay"], no_decay=RELEASED_NO_DECAY)
    ours = {f"beit3.{theirs}": f"net.{name}" for theirs, name in our_names(2).items()}
    ours |= our_head_names("retrieval")
    assert {ours[theirs] for theirs in RELEASED["parameters"]} == found.keys()
    for theirs, expected in RELEASED["parameters"].items():
        rate, decays = found[ours[theirs]]
        assert rate == pytest.approx(expected["lr_scale"]), theirs
        assert decays == expected["decay"], theirs


def test_only_the_answer_head_learns_faster_and_the_pooler_does_not():
    torch.manual_seed(0)
    found = by_name(VQA(small_net(), ["yes", "no"]), head_scale=20.0)
    for name, (rate, _) in found.items():
        assert rate == (20.0 if name.startswith("head.") else 1.0), name
