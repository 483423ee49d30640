import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decoders import Limits
from datamodules.reading import Samples
from mhmoe_mm.batches import normalized
from tests.exported_tokenizer import SHAPE, export_tokenizer
from tests.tools.making import build_shapes
from tools.code_gallery import assembled, colours, main, tokenize

SIZE, PATCH, IMAGES = 16, 4, 31


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes")
    numbers = ("--train", "5", "--val", str(IMAGES), "--test", "0", "--size", str(SIZE))
    assert build_shapes(out, *numbers) == 0
    return out / "val"


def test_a_code_is_shown_by_the_mean_of_its_patches(shards, tmp_path):
    tokenizer = export_tokenizer(tmp_path / "tokenizer", SIZE, PATCH)
    samples = Samples(sorted(map(str, shards.glob("*.tar"))), Limits(), tmp_path)
    found = tokenize(tokenizer, samples)
    sums = {}
    for number in range(IMAGES):
        pixel = samples[number].image()
        code = tokenizer.tokens(normalized(pixel[None]))[0]
        assert torch.equal(found.code[number], code)
        for place, each in enumerate(code.tolist()):
            row, column = (PATCH * i for i in divmod(place, SIZE // PATCH))
            cut = pixel[:, row : row + PATCH, column : column + PATCH].double().flatten()
            sums.setdefault(each, []).append(cut)
    assert found.count.tolist() == [len(sums.get(each, [])) for each in range(SHAPE["num_codes"])]
    for each, cuts in sums.items():
        torch.testing.assert_close(found.mean[each], torch.stack(cuts).mean(dim=0))


def test_patches_are_put_together_where_they_were():
    pixel = torch.randint(0, 256, (3, 6, 6), generator=torch.Generator().manual_seed(1))
    cut = torch.stack(
        [pixel[:, r : r + 3, c : c + 3].flatten() for r in (0, 3) for c in (0, 3)]
    ).float()
    image = assembled(cut, grid=2)
    times = len(image) // 6
    assert np.array_equal(image[::times, ::times], pixel.permute(1, 2, 0).numpy())


def test_codes_that_are_alike_have_alike_colours():
    code = torch.nn.functional.normalize(torch.randn(23, 5), dim=1)
    code[1] = torch.nn.functional.normalize(code[0] + 0.01, dim=0)
    colour = colours(code)
    assert ((colour >= 0) & (colour <= 255)).all()
    apart = (colour[0] - colour).norm(dim=1)
    assert apart[1:].argmin() == 0
    assert colours(code[:, :2]).shape == (23, 3)


def test_the_picture_and_the_figures(shards, tmp_path, capsys):
    export_tokenizer(tmp_path / "tokenizer", SIZE, PATCH)
    command = [str(tmp_path / "tokenizer"), "--shards", str(shards), "--images", "3"]
    assert main([*command, "--out", str(tmp_path / "codes.png")]) == 0
    said = capsys.readouterr().out
    assert f"{IMAGES} images" in said
    assert "% of 23 codes are used, perplexity " in said
    with Image.open(tmp_path / "codes.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 10
    for wrong, why in (
        (["--out", str(tmp_path / "codes.jpg")], "name a .png"),
        (["--out", str(tmp_path / "no" / "codes.png")], "does not exist"),
        (["--out", str(tmp_path / "a.png"), "--images", "99"], "1 to 31"),
    ):
        assert main([*command, *wrong]) == 2
        assert why in capsys.readouterr().err
    assert main(["nowhere", "--shards", str(shards), "--out", str(tmp_path / "a.png")]) == 2
    assert "no image tokenizer at 'nowhere'" in capsys.readouterr().err
