import random

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.transforms import View, evaluation_view, random_crop, training_view
from mhmoe_mm.inputs.pixels import resize

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
