"""Perplexity and bits per byte, counted out by hand."""

import math

import pytest
import torch

from mhmoe_mm.metrics.text_score import TextScore


def keys(count: int, start: int = 0) -> list[str]:
    return [f"row {i}" for i in range(start, start + count)]


def test_scores_are_sums_over_tokens_and_bytes_never_means_of_means():
    metric = TextScore()
    batches = [  # nats, tokens, bytes, language
        ([7.0, 1.0, 3.0], [5, 1, 2], [11, 2, 3], ["en", "de", "en"]),
        ([2.0], [13], [17], ["de"]),
    ]
    for number, (*figures, language) in enumerate(batches):
        metric.update(*map(torch.tensor, figures), language, keys(len(language), 10 * number))
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == pytest.approx(
        {
            "perplexity": math.exp(13 / 21),
            "bits_per_byte": 13 / math.log(2) / 33,
            "perplexity_en": math.exp(10 / 7),
            "bits_per_byte_en": 10 / math.log(2) / 14,
            "perplexity_de": math.exp(3 / 14),
            "bits_per_byte_de": 3 / math.log(2) / 19,
        }
    )


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_one_language_has_no_scores_of_its_own_and_no_rows_have_none_at_all():
    metric = TextScore()
    metric.update(torch.tensor([2.0]), torch.tensor([5]), torch.tensor([7]), ["en"], ["a"])
    assert set(metric.compute()) == {"perplexity", "bits_per_byte"}
    assert TextScore().compute() == {}


def test_scores_do_not_depend_on_how_rows_are_cut_into_batches():
    torch.manual_seed(0)
    nats, tokens, num_bytes = (torch.rand(1009) * 9, *torch.randint(7, (2, 1009)))
    language = ["en" if i % 3 else "cs" for i in range(1009)]
    found = set()
    for size in (1, 2, 31, 1009):
        metric = TextScore()
        for rows in torch.randperm(1009).split(size):
            names = [(language[i], f"row {i}") for i in rows]
            metric.update(
                nats[rows], tokens[rows], num_bytes[rows], *map(list, zip(*names, strict=True))
            )
        found.add(tuple(value.item() for value in metric.compute().values()))
    assert len(found) == 1


def test_rows_that_only_fill_a_batch_do_not_count():
    metric = TextScore()
    for repeat in (1, 2):
        metric.reset()
        figures = [torch.tensor([column] * repeat) for column in (2.5, 5, 7)]
        valid = torch.arange(repeat) < 1
        metric.update(*figures, ["en"] * repeat, ["a"] * repeat, valid)
        assert metric.compute()["perplexity"].item() == pytest.approx(math.exp(0.5))
