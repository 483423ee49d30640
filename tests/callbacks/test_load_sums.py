import pytest
import torch

from mhmoe_mm.callbacks.load_sums import LoadSums
from mhmoe_mm.moe.routing import Load, total_load
from tests.callbacks.standin import NAMES, load_of, quiet_trainer


def random_load(generator: torch.Generator, experts: int) -> Load:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(0, 97, shape, generator=generator).float()

    return Load(
        draw(2, experts), draw(2), draw(2), draw(experts), draw(experts), draw(), draw(), NAMES
    )


def test_sums_equal_adding_loads_one_by_one(tmp_path):
    generator = torch.Generator().manual_seed(5)
    steps = [{"a": random_load(generator, 7), "b.c": random_load(generator, 3)} for _ in range(5)]
    sums = LoadSums()
    for loads in steps:
        sums.add({"loss": torch.tensor(0.0), "loads": loads})
    got = sums.reduce(quiet_trainer(tmp_path, []))
    assert sums.steps == 5
    assert list(got) == ["a", "b.c"]
    for layer, load in got.items():
        wanted = total_load(loads[layer] for loads in steps)
        assert load.names == wanted.names
        for ours, theirs in zip(load[:-1], wanted[:-1], strict=True):
            assert torch.equal(ours, theirs.double())


def test_steps_may_bring_different_layers(tmp_path):
    one, two = load_of([[1, 2], [3, 4]], [5, 6]), load_of([[7, 0, 0], [0, 0, 9]], [7, 9])
    sums = LoadSums()
    for loads in ({"a": one, "b": two}, {"b": two}, {}, {"b": two, "a": one}):
        sums.add({"loads": loads})
    sums.add(None)
    got = sums.reduce(quiet_trainer(tmp_path, []))
    assert got["a"].count.tolist() == [[2, 4], [6, 8]]
    assert got["b"].count.tolist() == [[21, 0, 0], [0, 0, 27]]
    assert sums.steps == 5


def test_counts_stay_exact_beyond_what_float32_holds(tmp_path):
    sums = LoadSums()
    sums.add({"loads": {"a": load_of([[2**24, 1], [0, 0]], [2**24, 0])}})
    for _ in range(3):
        sums.add({"loads": {"a": load_of([[1, 1], [0, 0]], [1, 0])}})
    assert sums.reduce(quiet_trainer(tmp_path, []))["a"].count[0, 0] == 2**24 + 3


def test_a_layer_that_changes_its_experts_is_refused(tmp_path):
    sums = LoadSums()
    sums.add({"loads": {"a": load_of([[1, 2], [3, 4]], [5, 6])}})
    sums.add({"loads": {"a": load_of([[1, 2, 3], [3, 4, 5]], [5, 6])}})
    with pytest.raises(ValueError, match=r"Layer a returned loads of 2 experts .* and of 3"):
        sums.reduce(quiet_trainer(tmp_path, []))


def test_adding_keeps_no_history(tmp_path):
    load = load_of([[1, 2], [3, 4]], [3, 7])
    sums = LoadSums()
    sums.add({"loads": {"a": load._replace(prob=load.prob.requires_grad_())}})
    assert not sums.reduce(quiet_trainer(tmp_path, []))["a"].prob.requires_grad
