"""All engines train the same network but for its sparse layers, and the trainer's bare step is the
trainer's.
"""

import copy
import json
from pathlib import Path

import pytest
import torch

from mhmoe_mm.models.image_targets import NormalizedPixels
from mhmoe_mm.moe.sparse_layers import sparse_layers
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from tests.tasks.batches import PATCH, batch, small_net
from tests.tasks.training import FAST, train
from tools.benchmarks import peers, step, trainer
from tools.benchmarks.engines import DENSE, LOOP, OURS
from tools.plan.batches import made_up
from tools.plan.settings import Setting
from tools.plan.step import optimizer_of, take_step

NET = """
class_path: mhmoe_mm.models.beit3.BEiT3
init_args:
  image_size: 12
  patch_size: 4
  vocab_size: 53
  dim: 24
  num_layers: 2
  num_heads: 2
  layout:
    class_path: mhmoe_mm.models.multiway.SharedLayout
    init_args:
      dense: {class_path: mhmoe_mm.models.ffn.GeluFFN, init_args: {hidden: 20}}
      sparse:
        class_path: mhmoe_mm.moe.MHMoE
        init_args:
          num_experts: 5
          experts: {class_path: mhmoe_mm.moe.GeluExperts, init_args: {hidden: 28}}
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(NET)
    return path


ENGINES = [DENSE, OURS, step.APART, LOOP, "one-hot", "hf-grouped"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_takes_the_place_of_the_sparse_layers_alone(net: Path, engine: str):
    if engine not in (DENSE, OURS, step.APART, LOOP, *peers.installed()):
        pytest.skip(f"{engine} is not installed")
    setting = Setting(net, "pretraining", 1, batch=3, text=7, precision="32-true")
    plain = step.task_with(OURS, setting, "cpu")
    (place,) = sparse_layers(plain.net)
    task = step.task_with(engine, setting, "cpu")
    outside = {n: p.shape for n, p in task.named_parameters() if f"net.{place}" not in n}
    assert outside == {n: p.shape for n, p in plain.named_parameters() if f"net.{place}" not in n}
    before = copy.deepcopy(task.state_dict())
    take_step(task, optimizer_of(task), made_up(task, setting), setting, 1)
    moved = {n for n, p in task.named_parameters() if not torch.equal(p, before[n])}
    inside = {n for n, _ in task.named_parameters() if f"net.{place}" in n}
    assert inside
    assert inside <= moved


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
def test_passes_apart_come_to_the_same_losses(net: Path, kind: str):
    setting = Setting(net, kind, 1, batch=3, text=7, precision="32-true")
    tasks = [step.task_with(engine, setting, "cpu") for engine in (OURS, step.APART)]
    passes = [[], []]
    for task, seen in zip(tasks, passes, strict=True):
        task.net.blocks[0].register_forward_hook(lambda *_, seen=seen: seen.append(1))
    batch = made_up(tasks[0], setting)
    one, apart = (task.losses(batch).predictions for task in tasks)
    assert len(one) > 0
    for name, prediction in one.items():
        torch.testing.assert_close(apart[name].loss, prediction.loss)
    assert [len(seen) for seen in passes] == [1, 3 if kind == "pretraining" else 2]


def test_a_net_without_sparse_layers_is_refused(net: Path, capsys):
    net.write_text(NET[: NET.index("      sparse:")])
    with pytest.raises(SystemExit):
        step.main([str(net)])
    assert "has no sparse layer: all engines would be the same" in capsys.readouterr().err


def test_the_command_prints_ratios_and_writes_them(net: Path, tmp_path: Path, capsys):
    path = tmp_path / "step.json"
    options = ["--batch", "3", "--text", "7", "--repeats", "2", "--device", "cpu"]
    assert step.main([str(net), *options, "--peers", "one-hot", "--json", str(path)]) == 0
    told = capsys.readouterr().out
    assert "one-hot x" in told
    (row,) = json.loads(path.read_text())["rows"]
    assert row["case"] == "small"
    assert all(row[engine]["ms"] > 0 for engine in (DENSE, OURS, step.APART, "one-hot", LOOP))


def pretraining() -> MaskedPretraining:
    torch.manual_seed(3)
    return MaskedPretraining(small_net(), NormalizedPixels(PATCH), **FAST)


def test_a_bare_step_is_a_step_of_the_training():
    whole, half = pretraining(), pretraining()
    train(whole, [batch(), batch()], gradient_clip_val=0.1)
    loop = trainer.BareLoop(phases=1, steps=1)
    train(half, [batch()], gradient_clip_val=0.1, callbacks=[loop], max_steps=9)
    assert len(loop.phases) == 1
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(half.state_dict()[name], value)


def test_what_is_outside_of_a_step_and_how_much_longer_it_is():
    spent = {"data": 1.0, "forward": 4.0, "backward": 4.0, "optimizer": 0.5, "other": 0.5}
    first, *others = [trainer.Phase(spent, bare) for bare in (1.0, 8.0, 10.0, 5.0)]
    lines, figures = trainer.report([first, *others], steps=20)
    assert figures["ms"] == pytest.approx(500)
    assert figures["outside"] == pytest.approx(0.15)
    assert figures["longer"] == pytest.approx(0.25)
    assert lines[-1] == "longer than a bare loop by +25.0% (from +0.0% to +100.0%)"


def test_a_command_of_the_trainers_that_is_wrong_is_one_sentence(capsys):
    command = ["--config", "conf/trainer/cpu.yaml", "--config", "conf/runs/shapes.yaml"]
    assert trainer.main(["--", *command, "--model.nett", "3"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "has no parameter 'nett'; did you mean 'net'?" in told
