"""The sweeps of `conf/sweeps` can be read, and every value that they try is an option."""

from pathlib import Path

import pytest

from mhmoe_mm.command_line.command import Command
from mhmoe_mm.command_line.program import build
from mhmoe_mm.tasks.base import Task
from tools.sweep.space import LAYER
from tools.sweep.sweep import read_sweep

CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    "path", sorted((CONF / "sweeps").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_value_of_a_sweep_is_an_option(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(CONF.parent)
    monkeypatch.setattr(Command, "instantiate_classes", lambda command: None)
    assert path.read_text().startswith(
        f"# Run     python -m tools.sweep run conf/sweeps/{path.name}"
    )
    sweep = read_sweep(path)
    assert sweep.name == path.stem
    for dimension in sweep.space:
        found: dict = vars(dimension.distribution)
        for value in dimension.values or (found["low"], found["high"]):
            words = dimension.words(value)
            assert bool(words) != dimension.key.startswith(LAYER)
            build(["fit", *sweep.command, *words], Task)


def test_one_pair_of_heads_and_experts_cannot_be_matched(monkeypatch: pytest.MonkeyPatch, tmp_path):
    from tools.sweep.layer import Infeasible

    monkeypatch.chdir(CONF.parent)
    sweep, costs, reasons = read_sweep(CONF / "sweeps/heads_x_experts.yaml"), [], []
    assert sweep.layer
    for heads in (1, 2, 4, 8):
        for experts in (4, 16, 64):
            numbers = {"num_heads": heads, "num_experts": experts}
            try:
                costs.append(sweep.layer.write(numbers, tmp_path / "net.yaml").macs)
            except Infeasible as error:
                reasons.append((heads, experts, str(error)))
    assert max(costs) / min(costs) < 1.001
    assert reasons == [(8, 4, "top_k=8 is more than num_experts=4.")]
