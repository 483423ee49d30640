import pytest
import torch

from mhmoe_mm.models.pixel_statistics import STATISTICS, renormalized
from mhmoe_mm.models.vqkd import VQKD
from tests.models.plain_vqkd import released_names, tokenized

SIZE, PATCH, PATCHES = 20, 5, 16


def small(**options) -> VQKD:
    torch.manual_seed(0)
    shape = {
        "image_size": SIZE, "patch_size": PATCH, "dim": 28, "num_heads": 2, "encoder_layers": 3,
        "decoder_layers": 2, "num_codes": 37, "code_dim": 6, "feature_dim": 13,
    }  # fmt: skip
    net = VQKD(**shape | options)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.3)  # biases too, and large enough to tell patches apart
    return net


def pixels(batch=3) -> torch.Tensor:
    return torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_it_is_the_released_tokenizer_by_the_released_names():
    net = small()
    token, feature = tokenized(pixels(), released_names(net.state_dict()), PATCH, (3, 2), 2)
    found = net((pixels() - 0.5) / 0.5)
    assert torch.equal(found.token, token)
    assert len(token.unique()) > 5
    torch.testing.assert_close(found.feature, feature, atol=2e-5, rtol=1e-5)


def test_the_base_tokenizer_has_the_released_shapes():
    with torch.device("meta"):
        shapes = {n: tuple(w.shape) for n, w in released_names(VQKD().state_dict()).items()}
    assert shapes["encoder.pos_embed"] == shapes["decoder.pos_embed"] == (1, 197, 768)
    assert shapes["decoder.patch_embed.proj.weight"] == (768, 32, 1, 1)
    assert shapes["quantize.embedding.weight"] == (8192, 32)
    assert shapes["encode_task_layer.2.weight"] == (32, 768)
    assert shapes["decode_task_layer.2.weight"] == (512, 768)
    assert shapes["encoder.blocks.11.attn.qkv.weight"] == (2304, 768)
    blocks = {name.split(".")[2] for name in shapes if name.startswith("decoder.blocks")}
    assert len(blocks) == 3
    assert not [name for name in shapes if "k_bias" in name or name.startswith("encoder.norm")]


def test_tokens_are_those_of_the_whole_forward_and_of_a_batch_of_one():
    net = small()
    image = pixels() * 2 - 1
    token = net.tokens(image)
    assert token.shape == (3, PATCHES)
    assert torch.equal(token, net(image).token)
    assert torch.equal(token[1:2], net.tokens(image[1:2]))


def test_the_reconstruction_teaches_the_encoder_through_the_codes():
    net = small()
    net(pixels() * 2 - 1).feature.square().sum().backward()
    assert net.encoder.patch_embed.proj.weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", STATISTICS)
def test_pixels_get_the_statistics_of_the_tokenizer(name):
    mean, std = (torch.tensor(n)[:, None, None] for n in STATISTICS[name])
    found = renormalized(pixels() * 2 - 1, *STATISTICS[name])
    torch.testing.assert_close(found, (pixels() - mean) / std, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="22x22 pixels do not divide into patches of 5x5"):
        small(image_size=22)
    with pytest.raises(ValueError, match="dim=28 into num_heads=3 equal heads"):
        small(num_heads=3)
    with pytest.raises(ValueError, match="'vgg': choose from half, imagenet, clip"):
        small(pixels="vgg")
    with pytest.raises(ValueError, match=r"\(batch, 3, 20, 20\), got \(1, 3, 25, 20\)"):
        small().tokens(torch.zeros(1, 3, 25, 20))
