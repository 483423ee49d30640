"""Recall against the full matrix of scores, ties, padding and memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mhmoe_mm.metrics.recall import RetrievalRecall, ranks

GOLDEN = Path(__file__).parents[1] / "golden" / "retrieval.safetensors"


def fed(image, text, image_id, valid=None, size=17):
    metric = RetrievalRecall()
    for rows in torch.arange(len(image_id)).split(size):
        part = None if valid is None else valid[rows]
        metric.update(image[rows], text[rows], image_id[rows], part)
    return metric


def pairs(images=101, captions=5, dim=7, seed=3):
    """Features in which an image and its captions are alike, in an order that mixes them."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, dim, generator=generator)
    image_id = torch.arange(images).repeat_interleave(captions)
    image_id = image_id[torch.randperm(len(image_id), generator=generator)]
    text = image[image_id] + torch.randn(len(image_id), dim, generator=generator)
    return image[image_id], text, image_id * 1000003


def sorted_ranks(query, query_id, candidate, candidate_id):
    """Position of the first right candidate in a stable sort that puts wrong ones first in ties."""
    found = []
    for vector, name in zip(query, query_id, strict=True):
        scores = [(-torch.dot(vector, other).item(), own.item() == name.item())
                  for other, own in zip(candidate, candidate_id, strict=True)]  # fmt: skip
        found.append([right for _, right in sorted(scores)].index(True))
    return torch.tensor(found)


def test_recall_is_that_of_the_reference():
    features = load_file(GOLDEN)
    with safe_open(GOLDEN, "pt") as file:
        wanted = json.loads(file.metadata()["result"])
    figures = fed(features["image"], features["text"], features["image_id"]).compute()
    for short, name in (("tr", "image_to_text"), ("ir", "text_to_image")):
        for k in (1, 5, 10):
            found = 100 * figures[f"{name}_recall_at_{k}"].item()
            assert found == pytest.approx(wanted[f"{short}_r{k}"], abs=1e-4)
    assert 100 * figures["mean_recall"].item() == pytest.approx(sum(wanted.values()) / 6, abs=1e-4)


@pytest.mark.parametrize("scores_at_once", [1, 1009, 2**22])
def test_ranks_are_those_of_sorting_every_row_whatever_fits_in_memory(scores_at_once):
    # Small whole numbers: many ties, and sums without rounding.
    generator = torch.Generator().manual_seed(5)
    image = torch.randint(-2, 3, (23, 5), generator=generator).float()
    text_id = torch.arange(23).repeat(3)
    text = image[text_id] + torch.randint(-1, 2, (69, 5), generator=generator)
    for sides in (
        (image, torch.arange(23), text, text_id),
        (text, text_id, image, torch.arange(23)),
    ):
        assert torch.equal(ranks(*sides, scores_at_once), sorted_ranks(*sides))


def test_features_that_are_all_alike_recall_nothing():
    figures = fed(torch.ones(29, 3), torch.ones(29, 3), torch.arange(29)).compute()
    assert not any(figures.values())


@pytest.mark.parametrize("dim", [97, 389, 769])
def test_equal_features_tie_wherever_they_stand(dim):
    # Each image is there twice, so that a text's own image always ties with a wrong one.
    generator = torch.Generator().manual_seed(dim)
    image = torch.randn(67, dim, generator=generator).repeat(2, 1)
    text = image + 0.1 * torch.randn(134, dim, generator=generator)
    for order in (torch.arange(134), torch.randperm(134, generator=generator)):
        assert (ranks(text, torch.arange(134), image[order], order, 1009) > 0).all()


def test_recall_does_not_depend_on_order_or_batches():
    image, text, image_id = pairs()
    order = torch.randperm(len(image_id), generator=torch.Generator().manual_seed(11))
    figures = fed(image, text, image_id).compute()
    assert fed(image[order], text[order], image_id[order], size=31).compute() == figures
    assert 0.1 < figures["text_to_image_recall_at_1"] < 0.9


def test_rows_that_fill_up_a_batch_do_not_count():
    image, text, image_id = pairs(images=19, captions=2)
    valid = torch.arange(len(image_id)) % 3 > 0
    figures = fed(image, text, image_id, valid).compute()
    assert fed(image[valid], text[valid], image_id[valid]).compute() == figures
    assert fed(image, text, image_id).compute() != figures


def test_an_image_is_held_once_and_again_after_a_reset():
    image, text, image_id = pairs(images=13, captions=3, dim=2)
    metric = fed(image, text, image_id)
    assert sum(map(len, metric.image)) == 13 * 2 * 4
    figures = metric.compute()
    metric.reset()
    assert metric.compute() == {}
    metric.update(image, text, image_id)
    assert metric.compute() == figures


def test_features_that_are_not_numbers_are_refused():
    image, text, image_id = pairs(images=7)
    text[3:5, 1] = torch.nan
    with pytest.raises(ValueError, match="2 of 35 text features hold NaN"):
        fed(image, text, image_id).compute()
