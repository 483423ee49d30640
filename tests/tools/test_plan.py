import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tests.ranks import torchrun
from tools.plan.__main__ import main
from tools.plan.ledger import Channel
from tools.plan.settings import Setting
from tools.plan.simulate import Plan, simulate

ENCODER, DECODER = Path("conf/nets/tiny.yaml"), Path("conf/nets/lm_char.yaml")
BASE = Setting(ENCODER, "pretraining", 2, batch=3, text=11, precision="32-true")


@cache
def plan(**changes) -> Plan:
    return simulate(replace(BASE, **changes))


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def sent(found: Plan, kind: str) -> float:
    return sum(t.sent for channel, t in found.traffic.items() if channel.kind == kind)


def test_ranks_share_weights_and_optimizer():
    alone, shared = plan(world=1), plan(world=4)
    assert alone.weights == 4 * alone.parameters == alone.gradients
    assert alone.optimizer == pytest.approx(2 * alone.weights, rel=0.01)
    assert alone.traffic == {}
    # Parts that do not divide are padded or, if scalars, everywhere.
    assert shared.weights == pytest.approx(alone.weights / 4, rel=0.02)
    assert shared.optimizer == pytest.approx(alone.optimizer / 4, rel=0.02)
    assert shared.flops == alone.flops


def test_a_decoders_weights_come_together_twice_and_its_gradients_once():
    """Blocks in forward and backward, the rest once: by the names of the parameters."""
    found = plan(net=DECODER, task="language_modeling", text=13, world=2)
    whole = 4 * found.parameters
    blocks = sum(t.sent for c, t in found.traffic.items() if c.kind == "all-gather")
    half = whole / 2
    assert half < blocks < 2 * half  # the embedding is about a tenth
    assert sent(found, "reduce-scatter") == pytest.approx(half, rel=0.01)
    kept = plan(net=DECODER, task="language_modeling", text=13, world=2, keep_gathered=True)
    assert sent(kept, "all-gather") == pytest.approx(half, rel=0.01)
    assert kept.peak > found.peak


def test_micro_batches_multiply_traffic_and_operations_but_not_memory():
    once, more = plan(accumulate=2), plan(accumulate=6)
    assert more.sent == pytest.approx(3 * once.sent)
    assert more.flops == pytest.approx(3 * once.flops)
    assert more.peak == once.peak


def test_recomputation_trades_memory_for_operations():
    kept, again = plan(batch=16), plan(batch=16, recompute=True)
    assert again.peak < 0.8 * kept.peak
    assert kept.flops < again.flops < 4 / 3 * kept.flops
    assert again.model_flops == kept.model_flops


def test_experts_that_are_spread_send_tokens_instead_of_weights():
    together, spread = plan(world=4), plan(world=4, expert_parallel=4)
    assert sent(together, "all-to-all") == 0
    assert sent(spread, "all-to-all") > 0
    assert sent(spread, "all-gather") < 0.5 * sent(together, "all-gather")
    assert spread.weights == pytest.approx(together.weights, rel=0.02)


def test_tokens_on_their_way_are_counted_to_the_byte():
    """Two sparse layers; each of 2 sub-tokens of half the width goes to 2 experts, there and back,
    forward and backward. Of every four rows one stays at home.
    """
    setting = replace(BASE, world=4, expert_parallel=4, task="retrieval")
    found = simulate(setting)
    tokens = setting.batch * (4**2 + 1 + setting.text)
    rows = 2 * 2 * tokens  # sub-tokens, each to two experts
    width, layers, ways = 128 // 2, 2, 4
    counts = 2 * layers * 2 * 40 * 8  # two forwards of two layers: rows for each expert, int64
    expected = (layers * ways * rows * width * 4 + counts / 2) * 3 / 4
    assert sent(found, "all-to-all") == pytest.approx(expected, rel=0.01)


def test_a_thousand_ranks_take_no_longer_to_plan_and_groups_are_what_they_should_be():
    found = plan(world=1024, expert_parallel=8)
    sizes = {(channel.kind, len(channel.ranks)) for channel in found.traffic}
    assert {("all-gather", 1024), ("all-gather", 128), ("all-to-all", 8)} <= sizes
    exchange = next(c for c in found.traffic if c.kind == "all-to-all")
    assert exchange == Channel("all-to-all", tuple(range(8)))


def test_the_program_tells_and_writes(tmp_path, capsys):
    file = tmp_path / "plan.json"
    command = f"{ENCODER} --world 16 --per-node 8 --text 11 --batch 3 --json {file}"
    assert main(command.split()) == 0
    shown = capsys.readouterr().out
    assert "between machines" in shown
    assert "Assumed: " in shown
    written = json.loads(file.read_text())
    assert written["setting"]["world"] == 16
    assert written["bytes"]["peak"] > written["bytes"]["weights"] > 0
    assert not any(part["within_node"] for part in written["traffic"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("conf/nets/none.yaml --world 2", "cannot be read as a net"),
        ("conf/runs/shapes.yaml --world 2", "is no net"),
        (f"{ENCODER} --world 6 --expert-parallel 4", "does not divide the number of ranks, 6"),
        (f"{ENCODER} --world 6 --expert-parallel 3", "40 experts cannot be spread evenly"),
        (f"{ENCODER} --world 4 --expert-parallel 2 --replicas 2", "do not go together"),
        (f"{ENCODER} --world 2 --text 63", "reads texts of up to 62 tokens"),
        (f"{ENCODER} --world 2 --task language_modeling", "needs a Decoder"),
        (f"{DECODER} --world 2 --task retrieval", "needs a BEiT3"),
        (f"{ENCODER} --world 0", "world is a number, 1 or more"),
        (f"{ENCODER} --world 2 --masked-text 0", "masked_text is a share"),
        (f"{ENCODER} --world 2 --per-node 0", "--per-node is a number of GPUs"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_a_sentence(options, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(options.split())
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("spread", [[], ["--expert-parallel", "2", "--recompute"]])
def test_two_real_processes_hold_send_and_compute_what_was_planned(spread):
    options = [str(ENCODER), "--precision", "32-true", "--batch", "32", "--accumulate", "2"]
    shown = torchrun(2, "tools.plan.measure", *options, *spread)
    ratio = {
        name: float(re.search(rf"{name}.*│\s+([\d.]+) │", shown)[1])  # pyright: ignore
        for name in ("memory", "sent", "operations")
    }
    assert ratio["operations"] == pytest.approx(1, abs=0.03)
    assert ratio["sent"] == pytest.approx(1, abs=0.03)
    # The router of a new net is not balanced: one rank's experts get more than the other's.
    assert ratio["memory"] == pytest.approx(1, abs=0.25 if spread else 0.1)


def test_kernels_for_a_gpu_are_planned_without_one_and_take_less_memory(tmp_path):
    plain, text = "{hidden: 192}", ENCODER.read_text()
    assert plain in text
    plans = []
    for backend in ("backends.GroupedBackend", "backend_triton.TritonBackend"):
        spec = f"{{class_path: mhmoe_mm.moe.{backend}, init_args: {{block: 32}}}}"
        net = tmp_path / f"{backend}.yaml"
        net.write_text(text.replace(plain, f"{{hidden: 192, backend: {spec}}}"))
        plans.append(plan(net=net))
    usual, found = plans
    assert found.flops == usual.flops
    assert found.peak < usual.peak
