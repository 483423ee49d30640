"""The released code's outputs, reproduced with its weights under our names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.models.released import our_names, resize_positions

GOLDEN = Path(__file__).parent / "golden"
SIZES = json.loads((GOLDEN / "beit3_tiny.json").read_text())


def read(name: str) -> dict[str, dict[str, torch.Tensor]]:
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in load_file(GOLDEN / name).items():
        group, _, name = key.rpartition("/")
        groups.setdefault(group, {})[name] = value
    return groups


def released_net(weights: dict[str, torch.Tensor], **others) -> BEiT3:
    hidden = SIZES["hidden"]
    keys = ("image_size", "patch_size", "vocab_size", "dim", "num_heads", "num_layers", "max_text")
    sizes = {key: SIZES[key] for key in keys}
    net = BEiT3(ReleasedLayout(dense=lambda dim: GeluFFN(dim, hidden)), **(sizes | others)).eval()
    names = our_names(SIZES["num_layers"], others.get("normalize_output", True))
    net.load_state_dict({ours: weights[theirs] for theirs, ours in names.items()})
    return net


@pytest.fixture(scope="module")
def golden():
    return read("beit3_tiny.safetensors")


@pytest.fixture(scope="module")
def resized():
    return read("beit3_tiny_resized.safetensors")


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "given"),
    [
        ("image_only", "image"),
        ("image_only_masked", "image masked"),
        ("text_only", "text pad"),
        ("text_only_nopad", "text"),
        ("image_text", "image text pad"),
        ("image_text_boolpad", "image text pad"),
        ("image_text_masked", "image text pad masked"),
    ],
)
@torch.no_grad()
def test_the_output_is_the_released_codes(golden, case, given):
    inputs = {"image": None, "text": None} | {name: golden["input"][name] for name in given.split()}
    encoded = released_net(golden["weight"])(**inputs)
    close(encoded.hidden, golden["output"][case])
    assert encoded.split == (17 if "image" in given else 0)
    assert encoded.loads == {}


@torch.no_grad()
def test_every_layers_output_is_the_released_codes(golden):
    net, seen = released_net(golden["weight"], normalize_output=False), []
    net.blocks[0].register_forward_pre_hook(lambda block, inputs: seen.extend(inputs[0]))
    for block in net.blocks:
        block.register_forward_hook(lambda block, inputs, output: seen.extend(output[0]))
    inputs = golden["input"]
    hidden = net(inputs["image"], inputs["text"], inputs["pad"]).hidden
    assert len(seen) == len(golden["hidden"])
    for layer, ours in enumerate(seen):
        close(ours, golden["hidden"][str(layer)])
    close(hidden, golden["output"]["no_output_norm"])


@torch.no_grad()
def test_the_embeddings_are_the_released_codes_plus_positions(golden):
    net = released_net(golden["weight"])
    image = net.image_embedding(golden["input"]["image"]) - net.image_embedding.position[2:]
    text = net.text_embedding(golden["input"]["text"]) - net.text_embedding.position[2:11]
    close(image, golden["embedding"]["image"])
    close(text, golden["embedding"]["text"])


@torch.no_grad()
def test_a_resized_position_table_and_its_network_are_the_released_codes(resized):
    name = "encoder.embed_positions.A.weight"
    table = resize_positions(resized["weight"][name], 6)
    close(table, resized["position"]["48"])
    net = released_net(resized["weight"] | {name: table}, image_size=48)
    close(net(resized["input"]["image48"], None).hidden, resized["output"]["image48"])


def test_a_half_precision_table_is_resized_in_float32(resized):
    table = resized["weight"]["encoder.embed_positions.A.weight"].half()
    assert torch.equal(resize_positions(table, 6), resize_positions(table.float(), 6))
    assert torch.equal(resize_positions(table, 6)[:3], table[:3].float())


def test_a_table_that_is_no_square_grid_is_refused():
    with pytest.raises(ValueError, match="leaves 11 for patches"):
        resize_positions(torch.zeros(14, 5), 6)


def test_names_of_the_released_base_and_large_models_map_one_to_one():
    base, large = our_names(12), our_names(24)
    assert (len(base), len(large)) == (491, 971)
    assert (len(set(base.values())), len(set(large.values()))) == (491, 971)
    assert len(our_names(12, normalize_output=False)) == 487
    with torch.device("meta"):
        net = BEiT3(ReleasedLayout())
    assert set(base.values()) == set(net.state_dict())
