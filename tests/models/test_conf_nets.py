"""Every net of `conf/nets` is built from its YAML alone and is as large as it says."""

import re
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from mhmoe_mm.command_line.options import restrict_imports
from mhmoe_mm.moe import MHMoE, SparseMoE
from mhmoe_mm.moe.budget import PRESETS, shape_of

NETS = Path(__file__).parents[2] / "conf" / "nets"


class Holder:
    """Takes a net as a task does."""

    def __init__(self, net: nn.Module):
        self.net = net


def built(path: Path, *options: str) -> nn.Module:
    restrict_imports([Holder.__module__])  # as the program does; it holds for the whole process
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Holder, "model")
    model = [f"--model={Holder.__module__}.Holder", f"--model.net={path}"]
    config = parser.parse_args([*model, *(f"--model.{option}" for option in options)])
    return parser.instantiate(config).model.net


def on_meta(name: str, *options: str) -> nn.Module:
    with torch.device("meta"):
        return built(NETS / f"{name}.yaml", *options)


def millions(net: nn.Module, part: str = "") -> float:
    return sum(p.numel() for name, p in net.named_parameters() if part in name) / 1e6


@pytest.mark.parametrize("path", sorted(NETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_net_is_as_large_as_its_header_says(path):
    header = re.match(r"# Net   .*?\n# Size  ([\d.]+)M parameters", path.read_text(), re.DOTALL)
    assert header is not None
    assert millions(on_meta(path.stem)) == pytest.approx(float(header[1]), abs=0.005)


@pytest.mark.parametrize(
    ("name", "size", "vision"), [("base", 220.99, 85.89), ("large", 672.70, 303.55)]
)
def test_the_released_nets_have_the_released_sizes(name, size, vision):
    net = on_meta(name)
    assert millions(net) == pytest.approx(size, abs=0.005)
    assert millions(net, "image") == pytest.approx(vision, abs=0.005)


def test_the_giants_parts_have_the_papers_sizes():
    net = on_meta("giant")
    for branch, size in [("image", 692.4), ("text", 692.4), ("fused", 51.9)]:
        matrices = [f"ffn.{branch}.up", f"ffn.{branch}.down"]
        assert sum(millions(net, m) for m in matrices) == pytest.approx(size, abs=0.2)
    maps = ("query", "key", "value", "out")
    assert sum(millions(net, f"attention.{m}.") for m in maps) == pytest.approx(317.4, abs=0.2)


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("lm_char_mh_moe", "mh_moe_h2"),
        ("lm_paper2_mh_moe_h3", "mh_moe_h3"),
        ("lm_paper2_bitnet", "mh_moe_h3"),
    ],
)
def test_sparse_layers_of_a_papers_net_have_the_papers_shape(name, preset):
    net = on_meta(name)
    layers = [m for m in net.modules() if isinstance(m, MHMoE)]
    assert layers
    for layer in layers:
        assert shape_of(layer) == PRESETS[preset](net.dim)


def test_every_sparse_layer_gets_modules_of_its_own():
    net = built(NETS / "tiny.yaml")
    sparse = [m for m in net.modules() if isinstance(m, MHMoE)]
    assert [path for path, m in net.named_modules() if isinstance(m, MHMoE)] == [
        "blocks.1.ffn.shared",
        "blocks.3.ffn.shared",
    ]
    assert sparse[0].router is not sparse[1].router
    addresses = [p.data_ptr() for p in net.parameters()]
    assert len(set(addresses)) == len(addresses)


def test_options_replace_parts_of_a_net():
    net = on_meta(
        "tiny_smoe",
        "net.init_args.dim=132",
        "net.init_args.layout=mhmoe_mm.models.multiway.PaperLayout",
        "net.init_args.layout.init_args.fused_layers=1",
        "net.init_args.layout.init_args.sparse=mhmoe_mm.moe.MHMoE",
        "net.init_args.layout.init_args.sparse.init_args.num_heads=3",
    )
    last = net.get_submodule("blocks.3.ffn.fused")
    assert isinstance(last, MHMoE)
    assert (last.num_heads, isinstance(last.moe, SparseMoE)) == (3, True)


@pytest.mark.parametrize("name", ["tiny", "tiny_dense", "tiny_smoe"])
def test_the_tiny_nets_encode_a_pair(name):
    net = built(NETS / f"{name}.yaml")
    pad = torch.arange(13) >= torch.tensor([[13], [6]])
    encoded = net(torch.randn(2, 3, 32, 32), torch.randint(2048, (2, 13)), pad)
    assert encoded.hidden.shape == (2, 17 + 13, 128)
    for path, load in encoded.loads.items():
        layer = net.get_submodule(path)
        pieces = layer.num_heads if isinstance(layer, MHMoE) else 1
        assert load.token.tolist() == [2 * 17 * pieces, 19 * pieces]
    assert len(encoded.loads) == (0 if name == "tiny_dense" else 2)
