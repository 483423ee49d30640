import pickle
import random

import pytest
import torch

from datamodules.augment import CHANGES, RandAugment
from datamodules.transforms import View, evaluation_view, training_view


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 29, 31), dtype=torch.uint8, generator=torch.manual_seed(7))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_change_keeps_shape_and_kind_and_all_but_the_first_do_something(image, change, sign):
    # Already stretched to all levels, a picture would not change under autocontrast.
    image = image // 2 + 30
    changed = change(image, 0.7, sign)
    assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)
    assert torch.equal(changed, image) == (change is CHANGES[0])


def test_it_depends_on_the_samples_own_draws_and_leaves_the_global_ones_alone(image):
    augment = pickle.loads(pickle.dumps(RandAugment()))
    before = torch.get_rng_state()
    several = [augment(image, random.Random(seed)) for seed in range(20)]
    assert torch.equal(before, torch.get_rng_state())
    again = [augment(image, random.Random(seed)) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(several, again, strict=True))
    assert len({tuple(picture.flatten().tolist()) for picture in several}) > 10


def test_nothing_is_flipped():
    """A bright left half stays on the left under every change."""
    image = torch.full((3, 40, 40), 60, dtype=torch.uint8)
    image[:, :, :20] = 200
    for change in CHANGES:
        for sign in (-1, 1):
            changed = change(image, 1.0, sign).float()
            assert changed[:, 10:30, 5:12].mean() > changed[:, 10:30, 28:35].mean()


def test_without_a_chance_nothing_happens(image):
    assert torch.equal(RandAugment(chance=0.0)(image, random.Random(3)), image)


def test_a_view_augments_in_training_only(image):
    plain, augmented = View(16, 8), View(16, 8, augment=RandAugment(ops=3, level=9, chance=1.0))
    pairs = [
        [training_view(image, view, random.Random(seed)) for view in (plain, augmented)]
        for seed in range(9)
    ]
    assert any(not torch.equal(a, b) for a, b in pairs)
    assert torch.equal(evaluation_view(image, plain), evaluation_view(image, augmented))


@pytest.mark.parametrize("options", [{"ops": 0}, {"level": 11}, {"chance": 1.5}])
def test_wrong_settings_are_told(options):
    with pytest.raises(ValueError, match=r"view\.augment needs"):
        RandAugment(**options)
