"""Released BEiT-3 models go to ours and back; what is none of them is refused by name."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mhmoe_mm.checkpoint.beit3 import METHODS, TASKS, from_beit3, recognised, to_beit3
from mhmoe_mm.exporting import export_beit3
from mhmoe_mm.inference import METHODS as ALL_METHODS
from mhmoe_mm.loading import TASKS as ASKED
from mhmoe_mm.models.released import MODELS as KINDS
from mhmoe_mm.models.released import resize_positions
from tests.checkpoint.released import DIM, MODELS, drawn, shapes
from tests.tasks.batches import small_net
from tests.tasks.training import FAST
from tests.test_exporting import equal


@pytest.mark.parametrize(("size", "model"), MODELS)
def test_every_released_model_is_recognised_from_its_keys_alone(size, model):
    with torch.device("meta"):
        given = {name: torch.empty(shape) for name, shape in shapes(size, model).items()}
    found = recognised(given, "a.pth")
    assert found.model == model
    assert len(set(found.names.values())) == len(found.names) == len(given)
    side = {"vqa": 480, "captioning": 480, "retrieval": 384}.get(model, 224)
    assert found.sizes == {
        "image_size": side,
        "patch_size": 16,
        "vocab_size": 64010,
        "dim": 768 if size == "base" else 1024,
        "num_layers": 12 if size == "base" else 24,
        "num_heads": 12 if size == "base" else 16,
        "max_text": 1022,
        "normalize_output": model not in ("vqa", "imagenet"),
    }
    assert found.hidden == 4 * found.sizes["dim"]


@pytest.mark.parametrize(("size", "model"), MODELS)
def test_there_and_back_is_the_same_to_the_bit(size, model, tmp_path):
    given = drawn(size, model)
    ours = from_beit3(given, "a.pth", num_heads=2).weights
    assert not any(name.startswith("beit3") for name in ours)
    kind, back = to_beit3(ours, "ours")
    assert kind == model
    assert equal(back, given)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_go_there_and_back(tmp_path, suffix):
    from mhmoe_mm.checkpoint.__main__ import main

    given = drawn("base", "retrieval")
    torch.save({"model": given, "epoch": 3}, tmp_path / "a.pth")
    out = tmp_path / "ours"
    assert main([str(tmp_path / "a.pth"), "--num-heads", "2", "--out", str(out)]) == 0
    export_beit3(out, tmp_path / f"back{suffix}")
    if suffix == ".pth":
        back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    else:
        back = load_file(tmp_path / "back.safetensors")
    assert equal(back, given)
    with pytest.raises(ValueError, match="exists already"):
        export_beit3(out, tmp_path / f"back{suffix}")
    with pytest.raises(ValueError, match=r"is to be a \.pth or a \.safetensors file"):
        export_beit3(out, tmp_path / "back.bin")


def test_half_precision_becomes_float32_without_a_loss():
    given = drawn("base", "nlvr2", torch.float16)
    ours = from_beit3(given, "a.pth", num_heads=2)
    assert {weight.dtype for weight in ours.weights.values()} == {torch.float32}
    for theirs, name in ours.names.items():
        assert torch.equal(ours.weights[name].half(), given[theirs])


def test_image_positions_are_interpolated_when_that_is_asked_for():
    given = drawn("base", "imagenet", torch.float16)
    model = from_beit3(given, "a.pth", num_heads=2, image_size=96)
    table = given["beit3.encoder.embed_positions.A.weight"]
    assert torch.equal(model.weights["net.image_embedding.position"], resize_positions(table, 6))
    assert model.init_args["net"]["init_args"]["image_size"] == 96
    assert model.notes == ["image positions interpolated from 199 to 39 rows, 224 to 96 pixels"]
    with pytest.raises(ValueError, match="Images of 100 pixels do not divide into patches of 16"):
        from_beit3(given, "a.pth", num_heads=2, image_size=100)


def without(weights, name):
    return {key: weight for key, weight in weights.items() if key != name}


def test_what_is_no_released_model_is_refused_by_name():
    given, long = drawn("base", "vqa"), "beit3.encoder.layers.3.ffn.A.fc1.weight"
    one = torch.zeros(1)
    refused = {
        "names that none has: 1 (beit3.extra)": given | {"beit3.extra": one},
        "names that none has: 2 (decoder.bias, other)": given | {"other": one, "decoder.bias": one},
        "lacks 1 (head.3.bias) of the vqa model": without(given, "head.3.bias"),
        f"lacks 1 ({long}) of the vqa model": without(given, long),
        f"{long} in a.pth has the shape (24, 7); beside the others it should be (24, 6)": given
        | {long: torch.zeros(24, 7)},
        "head.1.weight in a.pth has the shape (24,); beside the others it should be (12,)": given
        | {"head.1.weight": torch.zeros(24)},
        "904 image positions": given
        | {"beit3.encoder.embed_positions.A.weight": torch.zeros(904, DIM)},
        "beit3.text_embed.weight in a.pth has the shape (53,)": given
        | {"beit3.text_embed.weight": torch.zeros(53)},
        "numbers a layer 99999999": given | {"beit3.encoder.layers.99999999.x": one},
        "head.3.bias in a.pth holds int8": given
        | {"head.3.bias": torch.zeros(19, dtype=torch.int8)},
        "head.3.bias in a.pth holds values that are no numbers": given
        | {"head.3.bias": torch.full((19,), torch.nan)},
    }
    for why, weights in refused.items():
        with pytest.raises(ValueError, match=re.escape(why)):
            from_beit3(weights, "a.pth", num_heads=2)
    with pytest.raises(ValueError, match="width of 6, which no released model has"):
        from_beit3(given, "a.pth")
    with pytest.raises(ValueError, match="width of 6 cannot be cut into 4 equal heads"):
        from_beit3(given, "a.pth", num_heads=4)


def test_networks_that_are_laid_out_otherwise_do_not_go_back(tmp_path):
    from mhmoe_mm.tasks.nlvr2 import NLVR2

    weights = NLVR2(small_net(), **FAST).state_dict()
    with pytest.raises(ValueError, match="is not laid out as the released BEiT-3 models"):
        to_beit3(weights, "a.ckpt")
    dense = from_beit3(drawn("base", "backbone"), "a.pth", num_heads=2).weights
    with pytest.raises(ValueError, match=r"has a head that no released BEiT-3 model has: 1 \(own"):
        to_beit3(dense | {"own.weight": torch.zeros(3)}, "a.ckpt")
    kind, _ = to_beit3(dense | {"image_target.code": torch.zeros(3)}, "a.ckpt")
    assert kind == "backbone"


def test_the_tables_of_kinds_are_those_of_the_tasks():
    assert TASKS.keys() == {"backbone", *KINDS}
    for model, methods in METHODS.items():
        assert ALL_METHODS[ASKED[f"mhmoe_mm.tasks.{TASKS[model]}"]] == methods


def test_a_file_of_tensors_alone_is_read_too(tmp_path: Path):
    from mhmoe_mm.checkpoint.weights import read_weights

    given = drawn("base", "backbone")
    torch.save(given, tmp_path / "a.pth")
    save_file(given, tmp_path / "a.safetensors")
    assert equal(read_weights(tmp_path / "a.pth"), given)
    assert equal(read_weights(tmp_path / "a.safetensors"), given)
