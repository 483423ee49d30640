"""Pixels are normalised to the bit as the plain formula has it."""

import pytest
import torch

from mhmoe_mm.batches import normalized, pixels

EVERY = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.45, 0.25), (0.485, 0.229), (0.0, 1.0)])
def test_normalising_in_place_gives_what_the_formula_gives(mean, std):
    assert torch.equal(normalized(EVERY, mean, std), (EVERY.float() / 255 - mean) / std)
    assert torch.equal(pixels(normalized(EVERY, mean, std), mean, std), EVERY)


def test_what_is_normalised_stays_as_it_was():
    given = EVERY.float()
    kept = given.clone()
    normalized(given)
    assert torch.equal(given, kept)


def test_the_memory_order_of_images_stays():
    last = EVERY.contiguous(memory_format=torch.channels_last)
    assert normalized(last).is_contiguous(memory_format=torch.channels_last)
