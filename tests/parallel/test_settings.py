"""The settings of the strategy: two ranks come to what one process comes to without any."""

import json

import pytest
import torch
from safetensors import safe_open

from tests.parallel.settings import COMPILED, NAME, SETTINGS
from tests.parallel.worlds import LAYOUTS, TRAININGS, trained
from tests.ranks import run_on_ranks

FLOAT, BRAIN = ["torch.float32"], ["torch.bfloat16"]


@pytest.fixture(scope="module")
def alone():
    return trained(TRAININGS[NAME], LAYOUTS["alone"], 0, 1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two ranks came to with a setting, and what was seen of it."""
    folder, done = tmp_path_factory.mktemp("settings"), set()

    def run(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
        what = "compile" if name in COMPILED else "plain"
        if what not in done:
            run_on_ranks(2, "tests.parallel.settings", str(folder), what, limit_s=800)
            done.add(what)
        with safe_open(folder / f"{name}.safetensors", "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return json.loads(file.metadata()["said"]), weights

    return run


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).abs().max() / max(wanted.abs().max().item(), 1e-3)).item()


def exact(alone, said, weights, tolerance: float) -> None:
    assert said["losses"] == pytest.approx(alone["losses"], rel=tolerance)
    assert weights.keys() == alone["weights"].keys()
    for name, weight in alone["weights"].items():
        assert apart(weights[name], weight) <= 10 * tolerance, name


def near(alone, said) -> None:
    """As bf16 rounds: 8 bits are 4e-3, and a loss is a mean over many."""
    assert said["losses"] == pytest.approx(alone["losses"], rel=4e-3)
    assert said["losses"] != pytest.approx(alone["losses"], rel=1e-6)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if not name.startswith("bf16")])
def test_weights_in_the_memory_of_the_host_train_alike(runs, alone, name):
    exact(alone, *runs(name), tolerance=1e-6)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if name.startswith("bf16")])
def test_weights_travel_in_bf16_while_gradients_and_routers_stay_in_float32(runs, alone, name):
    said, weights = runs(name)
    near(alone, said)
    assert said["all_gather_single"] == BRAIN + FLOAT  # blocks; routers and all else
    assert said["reduce_scatter_single"] == FLOAT
    assert said["Scorer"] == FLOAT
    assert said["CausalAttention"] == said["GeluExperts"] == BRAIN
    assert all(weight.dtype == torch.float32 for weight in weights.values())


@pytest.mark.dist
@pytest.mark.slow
def test_without_it_everything_travels_in_float32(runs):
    said, _ = runs("offload")
    names = ("all_gather_single", "reduce_scatter_single", "CausalAttention", "Scorer")
    assert [said[name] for name in names] == [FLOAT] * 4


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_blocks_train_alike(runs, alone, name):
    said, weights = runs(name)
    if "bf16" in name:  # scorers are units of their own: a sparse block is not one graph
        assert said["graphs"] >= 1
        near(alone, said)
    else:
        assert said["graphs"] >= 2  # of a dense block, and of a sparse one
        exact(alone, said, weights, tolerance=1e-5)
