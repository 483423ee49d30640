"""Training on any number of ranks, however the network is sharded, is the same training."""

import json

import pytest
import torch
from safetensors import safe_open

from tests.parallel.worlds import LAYOUTS, STEPS, TRAININGS
from tests.ranks import run_on_ranks

LIMIT_S = 560
SPREAD = [
    (layout, world) for layout, how in LAYOUTS.items() for world in how.worlds if layout != "alone"
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What every number of ranks came to, made when it is asked for."""
    folder, done = tmp_path_factory.mktemp("worlds"), set()

    def run(training: str, layout: str, world: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        if world not in done:
            run_on_ranks(world, "tests.parallel.worlds", str(folder), limit_s=LIMIT_S)
            done.add(world)
        with safe_open(folder / f"{training}, {layout}, {world}.safetensors", "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return json.loads(file.metadata()["losses"]), weights

    return run


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("layout", "world"), SPREAD, ids=[f"{name}-{n}" for name, n in SPREAD])
@pytest.mark.parametrize("training", TRAININGS)
def test_any_number_of_ranks_comes_to_the_losses_and_weights_of_one(runs, training, layout, world):
    losses, weights = runs(training, "alone", 1)
    found_losses, found = runs(training, layout, world)
    assert len(losses) == STEPS * 2
    assert found_losses == pytest.approx(losses, rel=1e-6)
    assert found.keys() == weights.keys()
    for name, weight in weights.items():
        # Biases of keys change nothing, so what they are is rounding alone.
        least = 1e-5 * max(weight.abs().max().item(), 1e-3)
        apart = (found[name] - weight).abs().max().item()
        assert apart <= least, (name, apart, least)
