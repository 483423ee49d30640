import pytest
import torch
import torch.nn.functional as F

from mhmoe_mm.models.vqkd_codes import VQKDCodes, read_tokenizer
from mhmoe_mm.storage.sealed import save_sealed
from tests.exported_tokenizer import SHAPE, export_tokenizer

SIZE, PATCH, CODES = 20, 5, SHAPE["num_codes"]


def image(size=SIZE) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_targets_are_the_tokens_of_the_exported_tokenizer(tmp_path):
    tokenizer = export_tokenizer(tmp_path / "tokenizer", SIZE, PATCH)
    target = VQKDCodes(str(tmp_path / "tokenizer"))
    assert (target.patch_size, target.size) == (PATCH, CODES)
    found = target.target(image())
    assert torch.equal(found, tokenizer.tokens(image()))
    assert len(found.unique()) > 3
    logits = F.one_hot(found, CODES).float().flatten(0, 1) * 50
    assert int(target.predict(logits, found.flatten()).correct) == found.numel()


def test_precision_of_the_trainer_does_not_change_the_codes(tmp_path):
    export_tokenizer(tmp_path / "tokenizer", SIZE, PATCH)
    target = VQKDCodes(str(tmp_path / "tokenizer"))
    with torch.autocast("cpu", torch.bfloat16):
        found = target.target(image())
    assert torch.equal(found, target.target(image()))


def test_a_network_with_other_patches_gets_as_many_codes(tmp_path):
    tokenizer = export_tokenizer(tmp_path / "tokenizer", SIZE, PATCH)
    target = VQKDCodes(str(tmp_path / "tokenizer"), patch_size=7)
    assert target.patch_size == 7
    resized = F.interpolate(image(28), (SIZE, SIZE), mode="bicubic", antialias=True)
    assert torch.equal(target.target(image(28)), tokenizer.tokens(resized))
    with pytest.raises(
        ValueError, match=r"4x4 codes, so with patches of 7 pixels it is for .*28x28"
    ):
        target.target(image())


def test_it_reads_checkpoints_too_and_leaves_the_decoder_and_random_numbers_alone(tmp_path):
    tokenizer = export_tokenizer(tmp_path / "tokenizer", SIZE, PATCH)
    shape = {"image_size": SIZE, "patch_size": PATCH, **SHAPE}
    net = {"class_path": "mhmoe_mm.models.vqkd.VQKD", "init_args": shape}
    weights = {f"net.{name}": weight for name, weight in tokenizer.state_dict().items()}
    content = {"hyper_parameters": {"net": net}, "state_dict": weights}
    save_sealed(content, tmp_path / "last.ckpt")
    torch.manual_seed(3)
    target = VQKDCodes(str(tmp_path / "last.ckpt")).train()
    drawn = torch.rand(5)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(5))
    assert torch.equal(target.target(image()), tokenizer.tokens(image()))
    assert not [name for name in target.state_dict() if "decode" in name]
    assert not [p for p in target.parameters() if p.requires_grad]
    assert not [module for module in target.modules() if module.training]


def test_what_is_no_trained_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no image tokenizer at 'nowhere'"):
        read_tokenizer("nowhere")
    with pytest.raises(ValueError, match="is a folder and no export"):
        read_tokenizer(tmp_path)
    export_tokenizer(tmp_path / "untrained", SIZE, PATCH, started=False)
    with pytest.raises(ValueError, match="untrained has no codes yet"):
        read_tokenizer(tmp_path / "untrained")
    export_tokenizer(tmp_path / "other", SIZE, PATCH, class_path="mhmoe_mm.models.beit3.BEiT3")
    with pytest.raises(ValueError, match="other does not hold an image tokenizer"):
        read_tokenizer(tmp_path / "other")
    export_tokenizer(tmp_path / "odd", SIZE, PATCH, init_args={"image_size": SIZE, "colour": 3})
    with pytest.raises(ValueError, match=r"odd cannot be built here: .*colour"):
        read_tokenizer(tmp_path / "odd")
    with (tmp_path / "untrained/model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="not what was exported"):
        read_tokenizer(tmp_path / "untrained")
