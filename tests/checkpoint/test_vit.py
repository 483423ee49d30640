"""An image transformer of timm as the start of a network's image side."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mhmoe_mm.checkpoint import load_weights
from mhmoe_mm.checkpoint.starting import start_with
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import PaperLayout, ReleasedLayout, SharedLayout
from mhmoe_mm.models.released import resize_positions
from mhmoe_mm.tasks.image_classification import ImageClassification
from tests.tasks.batches import small_net
from tests.tasks.training import FAST

DIM, PATCH, LAYERS, HEADS, HIDDEN = 28, 5, 3, 2, 112
LAYOUTS = [ReleasedLayout, partial(PaperLayout, fused_layers=1), SharedLayout]


def vit(**options) -> VisionTransformer:
    """One whose weights all say something, with our epsilon."""
    torch.manual_seed(3)
    sizes = {"img_size": 20, "patch_size": PATCH, "embed_dim": DIM, "depth": LAYERS}
    norm = partial(nn.LayerNorm, eps=1e-5)
    given = {"num_heads": HEADS, "num_classes": 7, "norm_layer": norm}
    model = VisionTransformer(**(sizes | given | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def task_of(layout, image_size=20, sub_norm=False, dim=DIM, layers=LAYERS) -> ImageClassification:
    torch.manual_seed(0)
    dense = partial(GeluFFN, hidden=HIDDEN, sub_norm=sub_norm)
    built = layout(dense=dense, sub_norm=sub_norm)
    net = BEiT3(built, image_size, PATCH, 43, dim, layers, HEADS, max_text=11)
    return ImageClassification(net.eval(), 7, **FAST)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options", [{}, {"init_values": 0.3}, {"qkv_bias": False}, {"no_embed_class": True}]
)
@torch.no_grad()
def test_the_image_path_of_a_network_without_sub_norms_is_the_transformers(layout, options):
    model, task = vit(**options), task_of(layout)
    report = start_with(task, model.state_dict(), "timm")
    image = torch.randn(2, 3, 20, 20)
    found, wanted = task.net(image, None).hidden, model.forward_features(image)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert report.unexpected == ["head.bias", "head.weight"]
    assert "net.text_embedding.token.weight" in report.missing
    assert not any(".image." in name for name in report.missing)


def test_beits_biases_of_queries_and_values_are_taken():
    weights = vit().state_dict()
    for layer in range(LAYERS):
        bias = weights.pop(f"blocks.{layer}.attn.qkv.bias").chunk(3)
        weights[f"blocks.{layer}.attn.q_bias"], weights[f"blocks.{layer}.attn.v_bias"] = bias[::2]
    task = task_of(ReleasedLayout)
    start_with(task, weights, "timm")
    attention = task.net.blocks[1].attention
    assert attention.key["image"].bias.eq(0).all()
    assert torch.equal(attention.value["image"].bias, weights["blocks.1.attn.v_bias"])


def test_a_file_of_another_image_size_is_interpolated_and_reported(tmp_path):
    model, task = vit(), task_of(ReleasedLayout, image_size=35, sub_norm=True)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    report = load_weights(task, tmp_path / "vit.safetensors")
    assert report.resized == ["net.image_embedding.position from 19 to 52 rows"]
    unused = torch.zeros(2, DIM)
    wanted = resize_positions(torch.cat([unused, model.pos_embed[0].detach()]), 7)
    assert torch.equal(task.net.image_embedding.position[2:], wanted[2:])
    norms = [name for name in report.missing if "sub_norm.image" in name]
    assert len(norms) == 2 * LAYERS
    assert [name for name in report.missing if name.endswith("sub_norm.weight")]


def test_sparse_layers_start_fresh_and_are_told():
    task = ImageClassification(small_net(), 7, **FAST)
    report = start_with(task, vit(mlp_ratio=29 / DIM).state_dict(), "timm")
    assert "blocks.1.mlp.fc1.weight" in report.unexpected
    assert "blocks.2.attn.qkv.weight" in report.unexpected
    assert "net.blocks.1.attention.query.shared.weight" in report.loaded


def test_other_widths_patches_and_grids_are_refused():
    given = vit().state_dict()
    with pytest.raises(
        ValueError, match="is 28 wide and reads patches of 5 pixels in 3 colours; the network is 34"
    ):
        start_with(task_of(ReleasedLayout, dim=34), given, "a.pth")
    with pytest.raises(ValueError, match="reads patches of 4 pixels in 3 colours"):
        start_with(task_of(ReleasedLayout), vit(patch_size=4).state_dict(), "a.pth")
    with pytest.raises(ValueError, match=r"pos_embed in a\.pth has 19 rows, which is no square"):
        start_with(task_of(ReleasedLayout), vit(reg_tokens=2).state_dict(), "a.pth")
    with pytest.raises(ValueError, match=r"ffn\.image\.up\.weight has the shape \(56, 28\)"):
        start_with(task_of(ReleasedLayout), vit(mlp_ratio=2).state_dict(), "a.pth")
