import random

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.decoders import Limits
from datamodules.reading import EncodedImage, Samples
from datamodules.transforms import (
    View,
    evaluation_view,
    random_crop,
    reduction_of,
    seen,
    training_view,
)
from mhmoe_mm.inputs.pixels import resize
from tests.datamodules.conftest import encoded, write_tar

NOISE = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
IMAGE = torch.from_numpy(NOISE).permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(61, 83), (5, 97), (97, 5), (1, 1)])
def test_crops_lie_inside_and_keep_their_bounds(shape):
    view = View(scale=(0.3, 0.7), ratio=(0.5, 2.0))
    for seed in range(200):
        top, left, height, width = random_crop(*shape, view, random.Random(seed))
        assert top >= 0
        assert left >= 0
        assert 0 < height <= shape[0] - top
        assert 0 < width <= shape[1] - left
        if shape == (61, 83):
            assert 0.27 < height * width / (61 * 83) < 0.73
            assert 0.45 < width / height < 2.2


@pytest.mark.parametrize("size", [16, 224])
def test_resizing_equals_pil_to_two_levels(size):
    expected = np.array(Image.fromarray(NOISE).resize((size, size), Image.Resampling.BICUBIC))
    found = resize(IMAGE, size).permute(1, 2, 0).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_a_view_depends_on_its_generator_only():
    view = View(size=32, flip=0.5, jitter=0.4)
    views = [training_view(IMAGE, view, random.Random(seed)) for seed in (1, 1, 2)]
    assert views[0].dtype == torch.uint8
    assert views[0].shape == (3, 32, 32)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def encoded_image(tmp_path, kind: str, **options) -> EncodedImage:
    """A smooth image of 240 x 320 in a shard."""
    smooth = Image.fromarray(NOISE[:6, :8]).resize((320, 240), Image.Resampling.BICUBIC)
    data = encoded(smooth, kind, **options)
    extension = {"JPEG": "jpg", "PNG": "png"}[kind]
    write_tar(tmp_path / f"{extension}.tar", {"0": {extension: data}})
    return Samples([str(tmp_path / f"{extension}.tar")], Limits(), tmp_path)[0].encoded()


def test_a_view_of_an_encoded_image_is_that_of_its_pixels(tmp_path):
    image, view = encoded_image(tmp_path, "JPEG"), View(size=32, flip=0.5, jitter=0.3)
    for seed in range(5):
        expected = training_view(image.pixels(), view, random.Random(seed))
        assert torch.equal(seen(image, view, True, random.Random(seed)), expected)
    assert torch.equal(
        seen(image, view, False, random.Random(0)), evaluation_view(image.pixels(), view)
    )


def test_a_jpeg_that_is_decoded_smaller_shows_the_same_part(tmp_path, monkeypatch):
    image = encoded_image(tmp_path, "JPEG", quality=95)
    asked = []
    pixels = EncodedImage.pixels
    monkeypatch.setattr(
        EncodedImage, "pixels", lambda self, by=1: asked.append(by) or pixels(self, by)
    )
    whole, smaller = View(size=32, flip=0.5), View(size=32, flip=0.5, reduce=True)
    for seed in range(8):
        expected = seen(image, whole, True, random.Random(seed)).float()
        found = seen(image, smaller, True, random.Random(seed)).float()
        assert (found - expected).abs().mean() < 7
        assert (found - seen(image, whole, True, random.Random(seed + 99))).abs().mean() > 30
        assert torch.equal(found, seen(image, smaller, True, random.Random(seed)).float())
    assert set(asked[1::4]) == {4}, "half the area of 240 x 320 leaves 4 x 32 pixels"
    assert torch.equal(
        seen(image, smaller, False, random.Random(0)), seen(image, whole, False, random.Random(0))
    )


def test_only_jpegs_are_decoded_smaller(tmp_path):
    image, view = encoded_image(tmp_path, "PNG"), View(size=32, reduce=True)
    expected = training_view(image.pixels(), view, random.Random(3))
    assert torch.equal(seen(image, view, True, random.Random(3)), expected)


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ((64, 90), 16, 4),
        ((63, 90), 16, 2),
        ((128, 128), 16, 8),
        ((31, 500), 16, 1),
        ((9, 9), 16, 1),
    ],
)
def test_a_reduced_crop_is_never_smaller_than_the_view(sides, size, expected):
    assert reduction_of((5, 7, *sides), size) == expected


def test_a_flip_mirrors_left_and_right():
    still, flipped = View(size=32), View(size=32, flip=1.0)
    plain = training_view(IMAGE, still, random.Random(5))
    assert torch.equal(training_view(IMAGE, flipped, random.Random(5)), plain.flip(2))


def test_evaluation_sees_the_whole_image():
    view = View(size=64, patch=16)
    assert view.grid == 4
    assert torch.equal(evaluation_view(IMAGE, view), resize(IMAGE, 64))


@pytest.mark.parametrize(
    "options",
    [{"size": 225}, {"scale": (0.9, 0.2)}, {"ratio": (0.0, 1.0)}, {"flip": 1.5}, {"jitter": -1}],
)
def test_views_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"view\."):
        View(**options)
