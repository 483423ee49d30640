"""Released image tokenizers give their codes under our names."""

import re

import pytest
import torch

from mhmoe_mm.checkpoint.__main__ import main
from mhmoe_mm.checkpoint.vqkd import from_vqkd
from mhmoe_mm.models.vqkd import VQKD
from mhmoe_mm.models.vqkd_codes import VQKDCodes
from tests.checkpoint.test_import_command import write
from tests.models.plain_vqkd import released_names, tokenized

SIZES = {
    "image_size": 12, "patch_size": 4, "dim": 12, "num_heads": 2, "encoder_layers": 3,
    "decoder_layers": 2, "num_codes": 11, "code_dim": 5, "feature_dim": 7,
}  # fmt: skip


@pytest.fixture
def released() -> dict[str, torch.Tensor]:
    """A tokenizer as it was released, with what its training left."""
    torch.manual_seed(2)
    net = VQKD(**SIZES)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        net.codebook.code.copy_(torch.nn.functional.normalize(torch.randn(11, 5)))
    weights = {n: w.detach().clone() for n, w in released_names(net.state_dict()).items()}
    return weights | {
        "quantize.embedding.initted": torch.tensor([1.0]),
        "quantize.embedding.cluster_size": torch.zeros(11),
        "quantize.embedding.embed_avg": torch.zeros(11, 5),
        "quantize.cluster_size": torch.rand(11),
        "teacher_model.weight": torch.zeros(3),
        "scaling_layer.shift": torch.zeros(3),
    }


def test_the_codes_of_an_imported_tokenizer_are_the_released_ones(released, tmp_path, capsys):
    out = tmp_path / "ours"
    assert main([write(tmp_path / "a.pth", released), "--num-heads", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "an image tokenizer of BEiT v2, 11 codes" in said
    assert "left out, as only training needs them: 4 (quantize.embedding.cluster_size" in said
    target = VQKDCodes(str(out))
    pixel = torch.rand(3, 3, 12, 12)
    wanted, _ = tokenized(pixel, released, 4, (3, 2), 2)
    assert torch.equal(target.target((pixel - 0.5) / 0.5), wanted)
    assert len(wanted.unique()) > 2


def test_what_is_no_released_tokenizer_is_refused_by_name(released):
    name = "encoder.blocks.1.mlp.fc1.weight"
    one = torch.zeros(1)
    refused = {
        "names that none has: 1 (encoder.extra)": released | {"encoder.extra": one},
        f"lacks 1 ({name})": {n: w for n, w in released.items() if n != name},
        "has the shape (48, 13); beside the others it should be (48, 12)": released
        | {name: torch.zeros(48, 13)},
        "quantize.embedding.weight is of the shape (1,) in a.pth": released
        | {"quantize.embedding.weight": one},
    }
    for why, given in refused.items():
        with pytest.raises(ValueError, match=re.escape(why)):
            from_vqkd(given, "a.pth", 2)
    without = {n: w for n, w in released.items() if "cluster_size" not in n}
    assert not from_vqkd(without, "a.pth", 2).weights["net.codebook.recent"].any()
    with pytest.raises(ValueError, match="width of 12: the number of heads leaves no trace"):
        from_vqkd(released, "a.pth")
