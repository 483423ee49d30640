"""Evaluations of a network that ranks share out: the figures and predictions of one process."""

import json
from pathlib import Path

import pytest
import torch

from tests.parallel.evaluations import ASKED, LAYOUTS, LENGTHS, UNEVEN, dealt, evaluated
from tests.ranks import run_on_ranks
from tests.tasks.test_captioning import corrupted
from tests.tasks.training import train

EVALUATIONS = [(w, layout, n) for w in LAYOUTS for layout in LAYOUTS[w] for n in (UNEVEN, 7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With trained networks: captions that stop, and answers of which some are wrong."""
    folder = tmp_path_factory.mktemp("evaluations")
    torch.manual_seed(1)
    for name, steps in (("captions, greedy", 150), ("answers", 4)):
        asked = ASKED[name]
        batch = asked.batch(folder)
        parts = [corrupted(batch, n) if "caption" in name else batch for n in range(steps)]
        train(asked.task(folder), parts).save_checkpoint(folder / f"{asked.name}.ckpt")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    return {
        (name, total): evaluated(asked, folder, total, 0, 1, "auto")
        for name, asked in ASKED.items()
        for total in (UNEVEN, len(LENGTHS))
    }


@pytest.fixture(scope="module")
def together(folder):
    """What every rank wrote down, by the number of ranks."""
    found = {}
    for world in LAYOUTS:
        run_on_ranks(world, "tests.parallel.evaluations", str(folder))
        places = [folder / f"{world}-{rank}.json" for rank in range(world)]
        found[world] = [json.loads(place.read_text()) for place in places]
    return found


def test_ranks_differ_in_what_they_are_asked(folder, alone):
    batch = ASKED["captions, greedy"].batch(folder)
    own = [dealt(batch, UNEVEN, rank, 2) for rank in range(2)]
    assert [[part.valid.tolist() for part in parts] for parts in own] == [
        [[True, True], [True]], [[True, True], [False]]
    ]  # fmt: skip
    written = alone["captions, greedy", 7]["predicted"].values()
    assert [len(row["caption"].split()) for row in written] == list(LENGTHS)
    assert 0 < alone["answers", 7]["figures"]["test/accuracy"] < 1
    assert 0 < alone["answers, official", 7]["figures"]["test/accuracy"] < 1


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(("world", "layout", "total"), EVALUATIONS)
@pytest.mark.parametrize("name", ASKED)
def test_ranks_give_the_figures_and_predictions_of_one(alone, together, name, world, layout, total):
    wanted = alone[name, total]
    ranks = [found[f"{name}, {layout}, {total}"] for found in together[world]]
    for found in ranks:
        assert found["figures"] == pytest.approx(wanted["figures"], rel=1e-5)
    predicted = [row for found in ranks for row in found["predicted"].items()]
    assert len(predicted) == total  # every row once
    assert dict(predicted) == wanted["predicted"]
