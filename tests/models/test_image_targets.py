"""Image targets against a patch-by-patch account, and the files they refuse."""

import pytest
import torch
from safetensors.torch import save_file

from mhmoe_mm.models.image_targets import NormalizedPixels, PatchCodebook

SIZE, PATCH, CODES = 12, 3, 7


def image(seed=0):
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def each_patch(picture):
    """(row, patch number, pixels by channel, row, column)."""
    for row in range(len(picture)):
        for number in range((SIZE // PATCH) ** 2):
            top, left = (PATCH * i for i in divmod(number, SIZE // PATCH))
            yield row, number, picture[row, :, top : top + PATCH, left : left + PATCH].flatten()


@pytest.fixture
def codebook(tmp_path):
    code = torch.randn(CODES, 3 * PATCH**2, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "codebook.safetensors"
    save_file({"code": code}, path, metadata={"patch_size": str(PATCH)})
    return path, code


def test_pixels_are_normalised_within_each_patch():
    target = NormalizedPixels(PATCH, eps=0.0).target(image())
    for row, number, pixels in each_patch(image()):
        expected = (pixels - pixels.mean()) / pixels.std(correction=0)
        torch.testing.assert_close(target[row, number], expected)


def test_predicting_the_mean_of_every_patch_costs_one():
    pixels = NormalizedPixels(PATCH)
    target = pixels.target(image()).flatten(0, 1)
    prediction = pixels.predict(torch.zeros_like(target), target)
    torch.testing.assert_close(prediction.loss, torch.tensor(1.0), atol=1e-4, rtol=0)
    empty = pixels.predict(target[:0], target[:0])
    assert (float(empty.loss), int(empty.predicted)) == (0.0, 0)


def test_a_code_is_the_nearest_patch(codebook):
    path, code = codebook
    target = PatchCodebook(str(path)).target(image())
    for row, number, pixels in each_patch(image()):
        assert target[row, number] == (code - pixels).norm(dim=1).argmin()


def test_codes_are_scored_like_tokens(codebook):
    tokenizer = PatchCodebook(str(codebook[0]))
    target = torch.tensor([0, 3, 6])
    logits = torch.zeros(3, CODES)
    logits[0, 0] = logits[1, 1] = logits[2, 6] = 50.0
    prediction = tokenizer.predict(logits, target)
    assert (int(prediction.correct), int(prediction.predicted)) == (2, 3)
    torch.testing.assert_close(prediction.loss, torch.tensor(50.0 / 3))
    assert "code" in tokenizer.state_dict()


def test_what_is_no_codebook_is_refused_by_name(tmp_path, codebook):
    with pytest.raises(ValueError, match=r"no codebook at 'nowhere\.safetensors'"):
        PatchCodebook("nowhere.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="text' is not a codebook"):
        PatchCodebook(str(tmp_path / "text"))
    save_file({"code": codebook[1]}, tmp_path / "odd", metadata={"patch_size": "4"})
    with pytest.raises(ValueError, match="27 values, but patches of 4 pixels have 48"):
        PatchCodebook(str(tmp_path / "odd"))
