"""Models of a comparison that are shapes: their nets are built as they are counted."""

from pathlib import Path

import pytest
import yaml

from mhmoe_mm.moe.budget import PRESETS, LayerShape, match
from tools.compare.comparison import NET, read_comparison
from tools.compare.matching import Tolerance, differences, remarks
from tools.compare.nets import built, net_cost, net_of, write_nets
from tools.compare.shapes import read_shape

ROOT = Path(__file__).parents[2]
LAYERS, DIM = 3, 48
BASE = {
    "class_path": "mhmoe_mm.models.beit3.BEiT3",
    "init_args": {
        "image_size": 12, "patch_size": 4, "vocab_size": 53, "dim": DIM, "num_layers": LAYERS,
        "num_heads": 3, "max_text": 11,
        "layout": {
            "class_path": "mhmoe_mm.models.multiway.SharedLayout",
            "init_args": {
                "sparse_every": 1,
                "dense": {
                    "class_path": "mhmoe_mm.models.ffn.GeluFFN",
                    "init_args": {"hidden": 7, "sub_norm": False},
                },
            },
        },
    },
}  # fmt: skip
ROUTED = [name for name, make in PRESETS.items() if make(DIM).routed]


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("net.yaml").write_text(yaml.safe_dump(BASE))
    return tmp_path / "lamps.yaml"


def read(path: Path, **changes):
    content = {
        "name": "lamps",
        "stages": "--config run.yaml",
        "base": "net.yaml",
        "metrics": {"a": "b"},
    }
    path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
    return read_comparison(path)


@pytest.mark.parametrize("preset", ROUTED)
def test_a_net_of_a_preset_has_the_counted_parameters_and_multiply_adds(preset: str):
    shape = PRESETS[preset](DIM)
    cost = net_cost(built(net_of(BASE, shape)))
    assert cost.feed_forward_parameters == pytest.approx(LAYERS * shape.parameters, rel=0.01)
    assert cost.macs == pytest.approx(LAYERS * shape.active_macs, rel=1e-12)
    assert cost.router_macs == LAYERS * (shape.macs - shape.active_macs)
    assert cost.sparse_layers == LAYERS
    idle = shape.expert_parameters * (1 - min(shape.num_heads * shape.top_k / shape.num_experts, 1))
    assert cost.parameters - cost.active_parameters == round(LAYERS * idle)


def test_a_dense_net_keeps_the_form_of_the_base():
    shape = LayerShape(DIM, 31, routed=False)
    net = built(net_of(BASE, shape))
    cost = net_cost(net)
    assert cost.macs == LAYERS * 2 * DIM * 31
    assert cost.sparse_layers == 0
    assert cost.parameters == cost.active_parameters == sum(p.numel() for p in net.parameters())
    assert not [name for name, _ in net.named_parameters() if "ffn.shared.sub_norm" in name]


def test_experts_are_rounded_where_the_dense_nets_of_the_base_are():
    quantized = yaml.safe_load(Path("conf/nets/lm_paper2_bitnet.yaml").read_text())
    layer = net_of(quantized, PRESETS["mh_moe_h3_shared"](768))["init_args"]["sparse"]["init_args"]
    rounding = {"class_path": "mhmoe_mm.moe.BitNet"}
    assert layer["experts"]["init_args"]["quantization"] == rounding
    assert layer["shared"]["init_args"]["quantization"] == rounding
    built(net_of(quantized, PRESETS["smoe"](768)))


def test_a_base_without_one_place_for_layers_is_refused():
    without = {"class_path": "torch.nn.Linear", "init_args": {"dim": DIM}}
    with pytest.raises(ValueError, match="in one place; it has it in 0"):
        net_of(without, PRESETS["smoe"](DIM))


def test_an_entry_is_a_preset_a_solution_or_a_shape_of_its_own():
    h2 = PRESETS["mh_moe_h2"](DIM)
    assert read_shape({"preset": "mh_moe_h2"}, DIM) == h2
    assert read_shape({"preset": "mh_moe_h2", "merge_layers": 0}, DIM).merge_layers == 0
    solved = read_shape({"match": "smoe", "num_heads": 4, "top_k": 3, "multiple_of": 5}, DIM)
    assert solved == match(PRESETS["smoe"](DIM), 4, 3, multiple_of=5)
    own = {"hidden": 19, "num_experts": 5, "top_k": 2, "bias": True}
    assert read_shape(own, DIM) == LayerShape(DIM, 19, 5, 2, bias=True)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"preset": "sparse"}, "there is no preset 'sparse'; known are dense"),
        ({"preset": "smoe", "match": "smoe"}, "exclude each other"),
        ({"match": "smoe", "num_heads": 2}, "needs top_k of the layer"),
        ({"match": "smoe", "num_heads": 5, "top_k": 2}, "num_heads=5 does not divide dim=48"),
        ({"num_experts": 5}, "has a `preset`"),
        ({"hidden": 19, "width": 3}, "there is no width of a model; known are preset, match"),
        ({"hidden": "wide"}, "hidden is a whole number, 0 or more, got 'wide'"),
        ({"hidden": 19, "bias": 1}, "bias is true or false, got 1"),
        ({"hidden": 19, "top_k": 2}, "top_k=2 is more than num_experts=1"),
        ({"hidden": 19, "matrices": 4}, "matrices is 2"),
        ({"hidden": 19, "num_heads": 5}, "num_heads=5 does not divide the net's dim=48"),
        ({"hidden": 19, "dim": 96}, "dim is 96, but the base net has dim 48"),
        ({"hidden": 0}, "at least 1"),
    ],
)
def test_an_entry_that_is_wrong_gets_a_sentence(comparison: Path, entry, why: str):
    with pytest.raises(ValueError, match=f"lamps.yaml: mine: .*{why}"):
        read(comparison, models={"mine": entry})


def test_nets_are_written_where_the_options_say(comparison: Path):
    models = {
        "SMoE": {"preset": "smoe"},
        "h=2": {"preset": "mh_moe_h2", "options": "--model.lr 2"},
        "plain": "--model.net net.yaml",
    }
    asked = read(comparison, models=models)
    assert asked.models["h=2"] == (("--config", "run.yaml", "--model.net", NET, "--model.lr", "2"),)
    written, costs = write_nets(asked, Path("runs"))
    file = Path("runs/lamps/h-2/net.yaml")
    assert written.models["h=2"][0][2:4] == ("--model.net", str(file))
    assert written.models["plain"] == asked.models["plain"]
    assert [*costs] == ["SMoE", "h=2"]
    assert costs["h=2"] == net_cost(built(yaml.safe_load(file.read_text())))
    before = file.read_text()
    write_nets(asked, Path("runs"))
    assert file.read_text() == before


def test_a_net_that_cannot_be_built_gets_a_sentence(comparison: Path):
    broken = {**BASE, "init_args": {**BASE["init_args"], "num_heads": 5}}
    Path("net.yaml").write_text(yaml.safe_dump(broken))
    asked = read(comparison, models={"mine": {"preset": "smoe"}})
    with pytest.raises(ValueError, match=r"net.yaml with the layers of mine cannot be built: .*5"):
        write_nets(asked, Path("runs"))


def test_the_second_papers_layers_match_and_the_first_papers_do_not(comparison: Path):
    presets = ("smoe", "fine_grained", "mh_moe_h2", "mh_moe_h3", "paper1_code")
    asked = read(comparison, models={name: {"preset": name} for name in presets})
    _, costs = write_nets(asked, Path("runs"))
    [complaint] = remarks(costs, "smoe", Tolerance())
    assert complaint.startswith("NOT MATCHED: paper1_code has ")
    assert "multiply-adds per token (at most 1%)" in complaint
    for name in ("fine_grained", "mh_moe_h2", "mh_moe_h3"):
        parameters, macs = differences(costs["smoe"], costs[name])
        assert abs(parameters) < 0.05
        assert abs(macs) < 0.001
    strict = remarks(costs, "smoe", Tolerance(parameters=0.01))
    assert [line.split()[2] for line in strict] == ["mh_moe_h2", "mh_moe_h3", "paper1_code"]


def test_a_dense_net_is_held_against_multiply_adds_only():
    base = {**BASE}
    sparse = net_cost(built(net_of(base, LayerShape(DIM, 31, 5))))
    equal = net_cost(built(net_of(base, LayerShape(DIM, 31, routed=False))))
    dearer = net_cost(built(net_of(base, LayerShape(DIM, 37, routed=False))))
    costs = {"sparse": sparse, "dense": equal, "wide": dearer}
    first, second = remarks(costs, "sparse", Tolerance())
    assert first.startswith("dense is matched with sparse in multiply-adds only: it has -")
    assert second == (
        "NOT MATCHED: wide has +19.4% multiply-adds per token (at most 1%) beside sparse."
    )
