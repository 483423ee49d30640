import hashlib
import io

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors import safe_open

from mhmoe_mm.batches import normalized
from tests.tools.making import build_shapes, samples_in
from tools.build_codebook import k_means, main, nearest

PATCH, CODES = 4, 23
SMALL = ("--patch-size", str(PATCH), "--codes", str(CODES), "--image-size", "16", "--rounds", "7")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes")
    assert build_shapes(out, "--train", "97", "--val", "31", "--test", "0", "--size", "16") == 0
    return out


def patches_of(folder) -> torch.Tensor:
    """Every patch of the training images, cut by loops."""
    patches = []
    for sample in samples_in(folder):
        if sample["split"] == "train":
            image = Image.open(io.BytesIO(sample["png"])).convert("RGB")
            pixel = normalized(torch.from_numpy(np.array(image)).permute(2, 0, 1))
            for top in range(0, 16, PATCH):
                for left in range(0, 16, PATCH):
                    patches.append(pixel[:, top : top + PATCH, left : left + PATCH].flatten())
    return torch.stack(patches)


def test_the_file_is_the_same_every_time_and_says_what_it_is(shapes, tmp_path):
    paths = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
    for path in paths:
        assert main([str(shapes), *SMALL, "--out", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with safe_open(paths[0], "pt") as file:
        assert file.metadata() == {
            "patch_size": "4",
            "codes": "23",
            "image_size": "16",
            "seed": "0",
            "card_sha256": hashlib.sha256((shapes / "card.json").read_bytes()).hexdigest(),
        }
        code = file.get_tensor("code")
    assert code.shape == (CODES, 3 * PATCH * PATCH)
    assert code.dtype == torch.float32


def test_codes_stand_for_the_patches_better_than_random_patches_do(shapes, tmp_path, capsys):
    path = tmp_path / "codebook.safetensors"
    assert main([str(shapes), *SMALL, "--out", str(path)]) == 0
    with safe_open(path, "pt") as file:
        code = file.get_tensor("code")
    patches = patches_of(shapes)
    error = torch.cdist(patches, code).square().min(dim=1).values.mean().item() / patches.shape[1]
    assert f"mean squared error {error:.5f}" in capsys.readouterr().out
    distinct = torch.unique(patches, dim=0)
    chance = distinct[torch.randperm(len(distinct))[:CODES]]
    assert error < torch.cdist(patches, chance).square().min(dim=1).values.mean() / 48
    assert code.min() >= -1
    assert code.max() <= 1


def test_patches_are_cut_in_the_order_of_the_networks_targets(shapes, tmp_path):
    """With as many codes as distinct patches every code is a patch: the order of values shows."""
    patches = patches_of(shapes)
    distinct = torch.unique(patches, dim=0)
    path = tmp_path / "codebook.safetensors"
    options = [*SMALL, "--codes", str(len(distinct)), "--out", str(path)]
    assert main([str(shapes), *options]) == 0
    with safe_open(path, "pt") as file:
        code = file.get_tensor("code")
    torch.testing.assert_close(torch.unique(code, dim=0), distinct)
    grid = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    flat = rearrange(grid, "b c (h p) (w q) -> (b h w) (c p q)", p=PATCH, q=PATCH)
    assert flat[1].tolist() == grid[0, :, :4, 4:].flatten().tolist()


def test_a_centre_without_points_starts_again_elsewhere():
    point = torch.tensor([[0.0], [1.0], [10.0], [11.0], [50.0]])
    weight = torch.tensor([7, 5, 3, 2, 1])
    for seed in range(13):
        generator = torch.Generator().manual_seed(seed)
        code, _ = k_means(point, weight, 5, 20, generator)
        assert torch.unique(code, dim=0).flatten().tolist() == point.flatten().tolist()


def test_lloyds_rounds_end_where_each_centre_is_the_weighted_mean_of_its_points():
    generator = torch.Generator().manual_seed(3)
    point = torch.randn(131, 3, generator=generator)
    weight = torch.randint(1, 9, (131,), generator=generator)
    code, rounds = k_means(point, weight, 7, 100, generator)
    assert rounds < 100
    index, distance = nearest(point, code)
    expected = torch.cdist(point.double(), code.double())
    assert index.tolist() == expected.argmin(dim=1).tolist()
    torch.testing.assert_close(
        distance.double(), expected.min(dim=1).values.square(), atol=1e-5, rtol=0
    )
    for number in range(7):
        mine = index == number
        mean = (point[mine] * weight[mine, None]).sum(0) / weight[mine].sum()
        torch.testing.assert_close(code[number], mean)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--patch-size", "5"], "--image-size 16 must be a multiple of --patch-size 5"),
        (["--codes", "0"], "above 0"),
        (["--codes", "99999"], "distinct patches"),
        (["--out", "no/where/code.safetensors"], "no/where"),
    ],
)
def test_bad_input_is_told_in_a_sentence(shapes, tmp_path, capsys, options, sentence):
    out = ["--out", str(tmp_path / "codebook.safetensors")]
    assert main([str(shapes), *SMALL, *out, *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
