"""Teachers against the networks that they are made from, and the files they refuse."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mhmoe_mm.models.pixel_statistics import STATISTICS
from mhmoe_mm.teachers.clip import ClipTeacher
from mhmoe_mm.teachers.own import NetTeacher
from mhmoe_mm.teachers.timm_models import TimmTeacher
from tests.tasks.batches import PATCHES, SIZE, small_net


def pixels(size: int) -> torch.Tensor:
    """Values in [0, 1]."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def clip_tower(tmp_path_factory):
    """A small tower of transformers with random weights, and its file."""
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=128, intermediate_size=160, projection_dim=24, num_hidden_layers=3,
        num_attention_heads=2, image_size=30, patch_size=5,
    )  # fmt: skip
    torch.manual_seed(0)
    tower = transformers.CLIPVisionModelWithProjection(config).eval()
    for weight in tower.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    texts = {"text_model.final_layer_norm.weight": torch.ones(7)}
    save_file(dict(tower.state_dict()) | texts, path)
    return tower, path


def test_clips_patches_are_those_of_its_own_tower_normed_and_projected(clip_tower):
    tower, path = clip_tower
    teacher = ClipTeacher(str(path))
    teacher.load()
    assert (teacher.image_size, teacher.grid, teacher.feature_dim) == (30, 6, 24)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in STATISTICS["clip"])
    with torch.no_grad():
        hidden = tower.vision_model((pixels(30) - mean) / std).last_hidden_state[:, 1:]
        expected = tower.visual_projection(tower.vision_model.post_layernorm(hidden))
    found = teacher(pixels(30) * 2 - 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # Another activation is another network.
    other = ClipTeacher(str(path), quick_gelu=False)
    other.load()
    assert (other(pixels(30) * 2 - 1) - expected).abs().max() > 1e-3


def test_clip_is_also_read_under_openais_names(clip_tower, tmp_path):
    from mhmoe_mm.teachers.clip import openai_names

    given = openai_names(load_file(clip_tower[1]))
    save_file({name: w.contiguous().half() for name, w in given.items()}, tmp_path / "open")
    both = [ClipTeacher(str(path)) for path in (clip_tower[1], tmp_path / "open")]
    for teacher in both:
        teacher.load()
    answers = [teacher(pixels(30)) for teacher in both]
    torch.testing.assert_close(*answers, atol=0.05, rtol=0.05)
    assert "visual.transformer.resblocks.2.attn.in_proj_bias" in given


def test_images_of_another_size_are_resized_for_the_teacher(clip_tower):
    teacher = ClipTeacher(str(clip_tower[1]))
    teacher.load()
    resized = F.interpolate(pixels(43), 30, mode="bicubic", antialias=True)
    torch.testing.assert_close(
        teacher(pixels(43) * 2 - 1), teacher(resized * 2 - 1), atol=2e-3, rtol=1e-3
    )


def test_a_network_of_ours_tells_what_its_patches_are(tmp_path):
    torch.manual_seed(2)
    net = small_net().eval()
    state = {f"net.{name}": weight for name, weight in net.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    teacher = NetTeacher(small_net(), str(tmp_path / "weights.safetensors"))
    teacher.load()
    assert (teacher.grid**2, teacher.feature_dim) == (PATCHES, 28)
    image = pixels(SIZE) * 2 - 1
    assert torch.equal(teacher(image), net(image, None).hidden[:, 1:])
    teacher.train()
    assert not [m for m in teacher.modules() if m.training]
    assert not [p for p in teacher.parameters() if p.requires_grad]


def test_a_network_of_ours_must_be_whole_but_for_its_texts(tmp_path):
    net = small_net()
    some = {n: w for n, w in net.state_dict().items() if not n.startswith("text_embedding.")}
    save_file(some, tmp_path / "vision.safetensors")
    NetTeacher(small_net(), str(tmp_path / "vision.safetensors")).load()
    save_file(
        {n: w for n, w in some.items() if ".attention." not in n}, tmp_path / "part.safetensors"
    )
    with pytest.raises(ValueError, match=r"lacks net\.blocks.*describe the network as where"):
        NetTeacher(small_net(), str(tmp_path / "part.safetensors")).load()


def test_timms_patches_are_its_last_features_without_class_tokens(tmp_path):
    name = "test_vit"
    torch.manual_seed(0)
    net = timm.create_model(name, pretrained=False).eval()
    save_file(net.state_dict(), tmp_path / "vit.safetensors")
    teacher = TimmTeacher(name, str(tmp_path / "vit.safetensors"))
    teacher.load()
    size = net.pretrained_cfg["input_size"][-1]
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = net.forward_features((pixels(size) - mean) / std)[:, 1:]
    torch.testing.assert_close(teacher(pixels(size) * 2 - 1), expected, atol=1e-4, rtol=1e-4)
    assert (teacher.image_size, teacher.grid**2) == (size, expected.shape[1])


def test_files_that_are_no_teacher_are_refused(tmp_path):
    with pytest.raises(ValueError, match="either from a file"):
        TimmTeacher("test_vit")
    with pytest.raises(ValueError, match="timm has no model called 'hf-hub:somebody/model'"):
        TimmTeacher("hf-hub:somebody/model", weights="x.safetensors")
    with pytest.raises(ValueError, match=r"no safetensors file at 'weights\.pth'"):
        TimmTeacher("test_vit", weights="weights.pth").load()
    save_file({"blocks.0.weight": torch.zeros(3)}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"teacher test_vit cannot be made: .*[Mm]issing key"):
        TimmTeacher("test_vit", weights=str(tmp_path / "part.safetensors")).load()
    with pytest.raises(ValueError, match=r"part\.safetensors is no CLIP checkpoint .* lacks"):
        ClipTeacher(str(tmp_path / "part.safetensors")).load()
    with pytest.raises(ValueError, match="cannot be read from 'nowhere'"):
        ClipTeacher("nowhere").load()
    (tmp_path / "pickled.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"cannot be read from .*pickled\.pt"):
        ClipTeacher(str(tmp_path / "pickled.pt")).load()
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", pretrained=False)
    save_file(net.state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match="test_resnet is no teacher: its features have the shape"):
        TimmTeacher("test_resnet", weights=str(tmp_path / "resnet.safetensors")).load()
