"""NLVR2 figures as its authors count them."""

import json
from pathlib import Path

import pytest
import torch

from mhmoe_mm.metrics.nlvr2 import Nlvr2Accuracy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "vqa_nlvr2.json").read_text())["nlvr2"]


def classes(name):
    return torch.tensor([int(example[name].lower() == "true") for example in GOLDEN["examples"]])


def names():
    return [example["identifier"] for example in GOLDEN["examples"]]


def printed(figures):
    return "".join(f"{name}={value.item()}\n" for name, value in figures.items())


@pytest.mark.parametrize("size", [1, 3, 8])
def test_figures_are_those_of_the_official_program_however_the_set_is_cut(size):
    metric = Nlvr2Accuracy()
    for rows in torch.arange(len(names())).split(size):
        metric.update(classes("pred")[rows], classes("label")[rows], [names()[i] for i in rows])
    assert printed(metric.compute()) == GOLDEN["official_stdout"]


def test_rows_that_fill_up_a_batch_do_not_count():
    metric = Nlvr2Accuracy()
    valid = torch.tensor([True] * 8 + [False] * 3)
    wrong = 1 - classes("label")[:3]
    metric.update(
        torch.cat((classes("pred"), wrong)),
        torch.cat((classes("label"), classes("label")[:3])),
        names() + names()[:3],
        valid,
    )
    assert printed(metric.compute()) == GOLDEN["official_stdout"]


def test_one_wrong_pair_makes_its_sentence_inconsistent():
    metric = Nlvr2Accuracy()
    one = torch.ones(3, dtype=torch.long)
    metric.update(torch.tensor([1, 0, 1]), one, ["test1-7-0-2", "test1-7-1-2", "test1-7-0-1"])
    assert metric.compute() == {"accuracy": torch.tensor(2 / 3), "consistency": 0.5}


def test_a_name_of_another_form_is_refused():
    one = torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match="named 'dev-1-0'"):
        Nlvr2Accuracy().update(one, one, ["dev-1-0"])


def test_nothing_judged_is_no_figure():
    assert Nlvr2Accuracy().compute() == {}
