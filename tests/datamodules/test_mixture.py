import math
import random
from collections import Counter

import numpy as np
import pytest

from datamodules.mixture import MixedOrder, Mixture, quotas
from datamodules.order import Schedule, ShuffledOrder

COUNTS = [7, 131, 53]
TOTAL = sum(COUNTS)


def mixed(shares=(0.2, 0.5, 0.3), seed=3, block=31) -> MixedOrder:
    orders = [ShuffledOrder([count], seed, f"l{i}") for i, count in enumerate(COUNTS)]
    return MixedOrder(orders, list(shares), seed, block)


def rows(order: MixedOrder, count: int) -> list[tuple[int, int, int]]:
    """(language, own epoch, row of the language) of the first places of training."""
    found = []
    for place in range(count):
        epoch, row = divmod(order.sample(*divmod(place, TOTAL)), TOTAL)
        language = int(np.searchsorted(np.cumsum(COUNTS), row, side="right"))
        found.append((language, epoch, row - sum(COUNTS[:language])))
    return found


def test_every_block_has_each_language_as_often_as_its_share_says():
    order = mixed()
    languages = [language for language, _, _ in rows(order, 20 * 31)]
    for start in range(0, len(languages), 31):
        count = Counter(languages[start : start + 31])
        assert [count[i] for i in range(3)] == order.quota.tolist() == [6, 16, 9]


def test_a_language_shows_all_its_rows_before_one_comes_again():
    order = mixed()
    for language, count in enumerate(COUNTS):
        own = [(e, row) for which, e, row in rows(order, 2000) if which == language]
        for start in range(0, len(own) - count, count):
            part = own[start : start + count]
            assert {epoch for epoch, _ in part} == {start // count}
            assert sorted(row for _, row in part) == list(range(count))


def test_the_order_of_a_language_changes_from_epoch_to_epoch():
    own = [row for which, _, row in rows(mixed(), 500) if which == 0]
    assert own[:7] != own[7:14]


def test_a_place_depends_on_the_seed_and_on_nothing_else():
    places = [(epoch, place) for epoch in range(5) for place in range(TOTAL)]
    expected = {at: mixed().sample(*at) for at in places[::13]}
    order = mixed()
    random.Random(0).shuffle(places)
    found = {at: order.sample(*at) for at in places}
    assert all(found[at] == number for at, number in expected.items())
    assert [mixed(seed=4).sample(0, n) for n in range(50)] != [found[0, n] for n in range(50)]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_ranks_together_read_what_one_would(world):
    order = mixed()
    schedules = [Schedule(TOTAL, 2, rank, world) for rank in range(world)]
    one = Schedule(TOTAL, 2 * world)
    for position in one.positions(3):
        together = [order.sample(*at) for at in one.places(position, order.total, one.batch_size)]
        ranks = [
            [order.sample(*at) for at in schedule.places(position, order.total, 2)]
            for schedule in schedules
        ]
        assert [number for step in zip(*ranks, strict=True) for number in step] == together


def test_a_temperature_makes_shares_more_alike():
    tokens = {"en": 10_000, "de": 100}
    assert Mixture().shares(tokens)["de"] == pytest.approx(100 / 10_100)
    assert Mixture(2.0).shares(tokens)["de"] == pytest.approx(10 / 110)
    assert Mixture(math.inf).shares(tokens) == {"en": 0.5, "de": 0.5}
    huge = {"en": 10**18, "de": 1}
    assert sum(Mixture(7.0).shares(huge).values()) == pytest.approx(1)
    weights = Mixture(weights={"de": 3.0, "en": 1.0})
    assert weights.shares(tokens) == {"en": 0.25, "de": 0.75}


@pytest.mark.parametrize("seed", range(5))
def test_quotas_sum_to_the_block_and_are_within_one_of_the_shares(seed):
    shares = np.random.default_rng(seed).dirichlet([2.0] * 7)
    found = quotas(shares.tolist(), 1024)
    assert found.sum() == 1024
    assert np.abs(found - shares * 1024).max() < 1


def test_the_smallest_language_is_read_too():
    assert quotas([0.9999, 0.00005, 0.00005], 101).tolist() == [99, 1, 1]
    assert quotas([1 / 3] * 3, 3).tolist() == [1, 1, 1]


def test_mixtures_without_meaning_are_refused():
    for temperature in (0.5, -1.0, math.nan):
        with pytest.raises(ValueError, match="at least 1"):
            Mixture(temperature)
    with pytest.raises(ValueError, match="exclude each other"):
        Mixture(2.0, {"en": 1.0})
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="above 0"):
            Mixture(weights={"en": weight})
    with pytest.raises(ValueError, match=r"weights are of en, .* in de en"):
        Mixture(weights={"en": 1.0}).shares({"en": 3, "de": 5})
