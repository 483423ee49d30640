import pickle
import random

import pytest
import torch
from jsonargparse import ArgumentParser

from datamodules.augment import RandAugment
from datamodules.augment_images import CHANGES, Erasing, ImageRandAugment
from datamodules.transforms import View, evaluation_view, training_view
from mhmoe_mm.inputs.pixels import resize


@pytest.fixture
def image():
    """Neither black nor white, so that every change has something to do."""
    draw = torch.manual_seed(7)
    return torch.randint(20, 200, (3, 29, 31), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_change_keeps_shape_and_kind_and_does_something(image, change, sign):
    changed = change(image, 0.9, sign)
    assert (changed.shape, changed.dtype) == (image.shape, torch.uint8)
    assert not torch.equal(changed, image)


@pytest.mark.parametrize("change", CHANGES[4:])  # of those before, only posterizing has a strength
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_stronger_change_changes_more(image, change, sign):
    smooth = resize(image[:, :5, :5], 37)

    def far(share: float) -> float:
        return (change(smooth, share, sign).float() - smooth.float()).abs().mean().item()

    assert far(0.0) < 1
    assert far(0.1) < far(0.9)


def test_fewer_values_are_left_the_stronger_posterizing_is(image):
    assert [CHANGES[3](image, share, 1).unique().numel() for share in (0.0, 0.5, 0.9)] == [
        len({value >> (8 - bits) for value in image.unique().tolist()}) for bits in (4, 2, 1)
    ]


def test_only_the_darker_half_becomes_brighter(image):
    brighter = CHANGES[5](image, 0.9, 1)
    assert torch.equal(brighter[image >= 128], image[image >= 128])
    assert torch.equal(brighter[image < 128], image[image < 128] + 99)


def test_the_strength_is_drawn_about_the_level():
    """Seen in a change whose strength can be read off the pixels."""
    grey = torch.full((3, 5, 7), 100, dtype=torch.uint8)

    def strengths(spread: float) -> set[int]:
        augment = ImageRandAugment(spread, ops=1, level=5, chance=1.0)
        made = [augment(grey, random.Random(seed)) for seed in range(400)]
        return {int(one[0, 0, 0]) for one in made if 101 <= one[0, 0, 0] <= 190}

    without, drawn = strengths(0.0), strengths(0.5)
    assert len(drawn) > len(without)
    assert without <= drawn


@pytest.mark.parametrize("augment", [ImageRandAugment(0.5), Erasing(0.7)])
def test_it_depends_on_the_samples_own_draws_and_leaves_the_global_ones_alone(image, augment):
    augment = pickle.loads(pickle.dumps(augment))
    before, given = torch.get_rng_state(), image.clone()
    several = [augment(image, random.Random(seed)) for seed in range(20)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(image, given)
    again = [augment(image, random.Random(seed)) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(several, again, strict=True))
    assert len({tuple(picture.flatten().tolist()) for picture in several}) > 10


def test_without_a_chance_nothing_happens(image):
    for augment in (ImageRandAugment(0.5, chance=0.0), Erasing(0.0)):
        assert torch.equal(augment(image, random.Random(3)), image)


def test_one_rectangle_of_the_area_that_was_asked_for_is_erased():
    image = torch.zeros(3, 53, 59, dtype=torch.uint8)
    for seed in range(50):
        gone = (Erasing(1.0, (0.1, 0.2))(image, random.Random(seed)) > 0).any(dim=0)
        rows, columns = gone.any(dim=1).nonzero(), gone.any(dim=0).nonzero()
        tall, wide = (int(at.max() - at.min()) + 1 for at in (rows, columns))
        assert 0.09 < tall * wide / (53 * 59) < 0.22
        assert gone.sum() > 0.95 * tall * wide  # noise is black now and then
        assert 0.25 < tall / wide < 4


def test_an_image_that_is_too_narrow_to_be_erased_stays():
    image = torch.zeros(3, 1, 19, dtype=torch.uint8)
    assert torch.equal(Erasing(1.0)(image, random.Random(0)), image)


def test_a_view_augments_and_erases_in_training_only(image):
    plain = View(16, 8)
    changed = View(16, 8, augment=ImageRandAugment(0.5, chance=1.0), erase=Erasing(1.0))
    for seed in range(5):
        views = [training_view(image, view, random.Random(seed)) for view in (plain, changed)]
        assert not torch.equal(*views)
    assert torch.equal(evaluation_view(image, plain), evaluation_view(image, changed))


@pytest.mark.parametrize(("shape", "part"), [((40, 24), (8, 0)), ((24, 41), (0, 8))])
def test_the_central_square_is_seen(shape, part):
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.manual_seed(1))
    top, left = part
    square = image[:, top : top + 24, left : left + 24]
    assert torch.equal(evaluation_view(image, View(24, 8, center_crop=True)), square)
    assert torch.equal(evaluation_view(image, View(16, 8, center_crop=True)), resize(square, 16))


@pytest.mark.parametrize(
    ("given", "augment"),
    [
        ("{ops: 2, level: 7}", RandAugment(2, 7.0)),
        ("{level: 9, spread: 0.5}", ImageRandAugment(0.5, 2, 9.0)),
        ("null", None),
    ],
)
def test_a_config_tells_the_two_apart_by_the_spread(given, augment):
    parser = ArgumentParser(parser_mode="omegaconf+", exit_on_error=False)
    parser.add_argument("--view", type=View)
    config = parser.parse_string(f"view: {{augment: {given}, erase: {{chance: 0.25}}}}")
    view = parser.instantiate(config).view
    assert (view.augment, view.erase) == (augment, Erasing(0.25))


@pytest.mark.parametrize("options", [{"ops": 0}, {"level": 11}, {"chance": 1.5}, {"spread": -1}])
def test_wrong_settings_of_augmenting_are_told(options):
    with pytest.raises(ValueError, match=r"view\.augment needs"):
        ImageRandAugment(**{"spread": 0.5} | options)


@pytest.mark.parametrize(
    "options", [{"chance": 1.5}, {"area": (0.5, 0.2)}, {"area": (0.1, 1.0)}, {"ratio": (0.0, 1.0)}]
)
def test_wrong_settings_of_erasing_are_told(options):
    with pytest.raises(ValueError, match=r"view\.erase"):
        Erasing(**{"chance": 0.5} | options)
