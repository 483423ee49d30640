import random
from itertools import chain

import pytest

from datamodules.order import (
    NaturalOrder,
    Position,
    Schedule,
    ShuffledOrder,
    evaluation_places,
    num_evaluation_steps,
)

COUNTS = [7, 13, 1, 11, 5, 3, 17]
TOTAL = sum(COUNTS)


def epoch_order(seed: int, epoch: int, window: int = 3) -> list[int]:
    order = ShuffledOrder(COUNTS, seed, "pair", window)
    return [order.sample(epoch, place) for place in range(order.total)]


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_an_epoch_holds_every_sample_once(window):
    assert sorted(epoch_order(5, 0, window)) == list(range(TOTAL))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    assert epoch_order(5, 2) == epoch_order(5, 2)
    assert epoch_order(5, 2) != epoch_order(5, 3)
    assert epoch_order(5, 2) != epoch_order(6, 2)
    order = ShuffledOrder(COUNTS, 5, "pair", 3)
    places = [(epoch, place) for epoch in range(9) for place in range(TOTAL)]
    random.Random(0).shuffle(places)
    expected = [epoch_order(5, epoch) for epoch in range(9)]
    assert all(order.sample(epoch, place) == expected[epoch][place] for epoch, place in places)


def test_samples_are_shuffled_within_windows_of_shards_only():
    shard_of = [shard for shard, count in enumerate(COUNTS) for _ in range(count)]
    shards = [shard_of[sample] for sample in epoch_order(5, 1, window=3)]
    at = 0
    while at < TOTAL:
        window = set(shards[at : at + 1])
        while at < TOTAL and (shards[at] in window or len(window) < 3):
            window.add(shards[at])
            at += 1
        assert not window & set(shards[at:])


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_union_over_ranks_is_the_order_of_one_rank(world):
    schedules = [Schedule(TOTAL, 3, rank, world) for rank in range(world)]
    seen = []
    for position in schedules[0].positions(epoch=4):
        rows = [schedule.places(position, TOTAL, 3) for schedule in schedules]
        assert {len(places) for places in rows} == {3}
        seen += [place for step in zip(*rows, strict=True) for place in step]
    assert seen == [(4, place) for place in range(TOTAL // (3 * world) * 3 * world)]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_all_ranks_have_the_same_number_of_steps(world):
    steps = {Schedule(TOTAL, 3, rank, world).num_steps() for rank in range(world)}
    assert steps == {TOTAL // (3 * world)}


def test_another_world_goes_on_with_the_samples_that_are_left():
    first = Schedule(TOTAL, 3, 0, 2)
    consumed = 4 * first.global_batch
    seen = []
    for position in first.positions(0)[:4]:
        for rank in range(2):
            seen += Schedule(TOTAL, 3, rank, 2).places(position, TOTAL, 3)
    for rank in range(5):
        schedule = Schedule(TOTAL, 3, rank, 5)
        for position in schedule.positions(0, consumed):
            seen += schedule.places(position, TOTAL, 3)
    assert sorted(seen) == [(0, place) for place in range(24 + (TOTAL - 24) // 15 * 15)]


def test_other_sources_advance_in_proportion_and_wrap_around():
    schedule = Schedule(total=20, batch_size=5)
    places = []
    for epoch in range(7):
        for position in schedule.positions(epoch):
            places += schedule.places(position, total=11, batch_size=2)
    # 28 steps of 2 samples out of 11, without a gap because 5 divides 20
    assert places == [divmod(number, 11) for number in range(56)]


def test_other_sources_never_repeat_a_sample_at_the_end_of_an_epoch():
    schedule = Schedule(total=23, batch_size=5)
    places = [
        place
        for epoch in range(9)
        for position in schedule.positions(epoch)
        for place in schedule.places(position, total=31, batch_size=3)
    ]
    assert len(set(places)) == len(places)


def test_other_sources_do_not_depend_on_the_world():
    one = Schedule(24, 2, 0, 1)
    for position in [Position(3, 0), Position(3, 6), Position(3, 12)]:
        joint = [one.places(Position(3, position.sample + 2 * i), 11, 4) for i in range(3)]
        ranks = [Schedule(24, 2, rank, 3).places(position, 11, 4) for rank in range(3)]
        assert sorted(chain(*joint)) == sorted(chain(*ranks))


@pytest.mark.parametrize("total", [1, 5, 12, 13, 23])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_covers_each_sample_once_in_equal_steps(total, world):
    steps = num_evaluation_steps(total, 2, world)
    places = [
        place
        for rank in range(world)
        for step in range(steps)
        for place in evaluation_places(step, 2, rank, world)
    ]
    assert sorted(place for place in places if place < total) == list(range(total))
    assert len(places) == steps * 2 * world < total + 2 * world


def test_the_natural_order_is_the_order_of_the_shards():
    order = NaturalOrder(COUNTS)
    assert [order.sample(3, place) for place in range(order.total)] == list(range(TOTAL))


def test_a_window_without_shards_is_refused():
    with pytest.raises(ValueError, match="at least 1 shard"):
        ShuffledOrder(COUNTS, 0, "pair", 0)
