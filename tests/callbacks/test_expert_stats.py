import json
import math

import pytest
import torch

from mhmoe_mm.callbacks.expert_report import as_record, complaint, details, means, rows
from mhmoe_mm.callbacks.expert_stats import EVEN_SHARE, layer_stats, random_counts
from tests.callbacks.standin import load_of

TAUS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.9)


def test_figures_equal_a_computation_by_hand():
    # 11 image tokens and 3 text tokens, two experts each, three assignments refused.
    stats = layer_stats(
        "b.1", load_of([[11, 7, 1, 0, 0], [0, 0, 3, 3, 0]], [11, 3], [3, 0]), None, TAUS
    )
    assert stats is not None
    image, text, both = stats.kinds
    assert (image.kind, text.kind, both.kind) == ("image", "text", "all")
    assert both is stats.overall
    assert image.tau == pytest.approx(EVEN_SHARE * 19 / (11 * 5))
    assert image.usage.activation == pytest.approx(2 / 5)  # 11 and 7 exceed 1.9, 1 does not
    assert text.usage.activation == pytest.approx(2 / 5)
    assert both.usage.activation == pytest.approx(4 / 5)  # 11, 7, 4, 3 exceed 2.5
    assert image.usage.max_over_mean == pytest.approx(11 * 5 / 19)
    assert (image.usage.dead, text.usage.dead, both.usage.dead) == (2, 3, 1)
    assert image.dropped_share == pytest.approx(3 / 22)
    assert text.usage.entropy_share == pytest.approx(math.log(2) / math.log(5))
    # r = 11/11, 7/11, 1/11, 0, 0
    assert image.usage.sweep == pytest.approx((3 / 5, 3 / 5, 2 / 5, 2 / 5, 2 / 5, 2 / 5, 1 / 5))


def test_an_expert_exactly_at_tau_is_not_active():
    for experts in (3, 7, 11):
        counts = [2] * (experts - 1) + [1]
        # tau = 0.5 * even share; the odd one out gets exactly that after scaling
        total = sum(counts)
        stats = layer_stats("b", load_of([counts, [0] * experts], [total, 0]), 1 / total, ())
        assert stats is not None
        assert stats.overall.usage.activation == pytest.approx((experts - 1) / experts)


def test_uniform_loads_are_fully_active_and_even():
    stats = layer_stats("b", load_of([[13] * 7, [0] * 7], [91, 0]), None, TAUS)
    assert stats is not None
    usage = stats.overall.usage
    assert (usage.activation, usage.dead, usage.max_over_mean) == (1, 0, pytest.approx(1))
    assert usage.entropy_share == pytest.approx(1)


def test_balance_is_the_number_of_experts_when_one_takes_all():
    stats = layer_stats("b", load_of([[0, 23, 0, 0, 0], [0] * 5], [23, 0]), None, ())
    assert stats is not None
    assert stats.balance == pytest.approx(5)
    assert stats.overall.usage.entropy_share == 0


def test_a_kind_that_never_reached_the_layer_is_left_out():
    stats = layer_stats("b", load_of([[0, 0, 0], [5, 1, 1]], [0, 7]), None, TAUS)
    assert stats is not None
    assert [kind.kind for kind in stats.kinds] == ["text"]
    assert layer_stats("b", load_of([[0, 0, 0], [0, 0, 0]], [0, 0]), None, TAUS) is None


def test_activation_falls_as_tau_rises():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        counts = torch.randint(0, 50, (2, 13), generator=generator)
        stats = layer_stats("b", load_of(counts.tolist(), [101, 103]), None, TAUS)
        assert stats is not None
        for kind in stats.kinds:
            for usage in (kind.usage, kind.random):
                assert list(usage.sweep) == sorted(usage.sweep, reverse=True)


@pytest.mark.parametrize(("experts", "assigned"), [(5, 17), (11, 29), (7, 211)])
def test_random_baseline_equals_throwing_assignments_one_by_one(experts: int, assigned: int):
    counts = [assigned] + [0] * (experts - 1)
    stats = layer_stats("b", load_of([counts, [0] * experts], [assigned, 0]), 2 / assigned, (0.1,))
    assert stats is not None
    generator = torch.Generator().manual_seed(11)
    thrown = torch.stack(
        [
            torch.bincount(
                torch.randint(experts, (assigned,), generator=generator), minlength=experts
            )
            for _ in range(4000)
        ]
    ).double()
    random, share = stats.overall.random, thrown / assigned

    def close(value: float, per_draw: torch.Tensor) -> bool:
        # ours has about 4096 / experts draws, so its error dominates
        error = per_draw.std() * (1 / (4096 // experts) + 1 / 4000) ** 0.5
        return abs(value - per_draw.mean()) < 4 * error + 1e-9

    assert close(random.activation, (thrown > 2).double().mean(dim=1))
    assert close(random.sweep[0], (share > 0.1).double().mean(dim=1))
    assert close(random.dead, (thrown == 0).double().sum(dim=1))
    assert close(random.max_over_mean, thrown.amax(dim=1) * experts / assigned)
    entropy = -torch.xlogy(share, share).sum(dim=1) / math.log(experts)
    assert close(random.entropy_share, entropy)


def test_random_counts_add_up_and_repeat():
    first = random_counts(997, 13, 19)
    assert first.sum(dim=1).tolist() == [997] * 19
    assert torch.equal(first, random_counts(997, 13, 19))
    assert len({tuple(row) for row in first.tolist()}) == 19


def test_random_baseline_of_few_tokens_is_itself_uneven():
    few = layer_stats("b", load_of([[1] * 11, [0] * 11], [11, 0]), None, ())
    many = layer_stats("b", load_of([[9973] * 11, [0] * 11], [109703, 0]), None, ())
    assert few is not None
    assert many is not None
    assert few.overall.random.max_over_mean > 2 > 1.1 > many.overall.random.max_over_mean
    assert few.overall.random.dead > 1 > many.overall.random.dead


def test_records_are_json_even_when_the_router_is_nan():
    load = load_of([[4, 1, 2], [0, 3, 0]], [7, 3])._replace(entropy=torch.tensor(float("nan")))
    stats = layer_stats("b", load, None, TAUS)
    assert stats is not None
    record = json.loads(json.dumps(as_record(stats, TAUS), allow_nan=False))
    assert record["router_entropy_share"] is None
    assert record["kinds"]["all"]["count"] == [4, 4, 2]
    assert record["kinds"]["text"]["load_share"] == [0, 1, 0]
    assert sum(record["kinds"]["image"]["random"]["count"]) == 7
    assert list(record["kinds"]["image"]["sweep"]) == [f"{tau:g}" for tau in TAUS]


def test_means_are_over_layers_and_name_only_the_kinds_seen():
    one = layer_stats("a", load_of([[8, 0], [0, 0]], [8, 0]), None, TAUS)
    two = layer_stats("b", load_of([[5, 5], [0, 0]], [10, 0]), None, TAUS)
    assert one is not None
    assert two is not None
    mean = means([one, two])
    assert mean["activation"] == mean["activation_image"] == pytest.approx(0.75)
    assert mean["max_over_mean"] == pytest.approx(1.5)
    assert mean["dead_share"] == pytest.approx(0.25)
    assert "activation_text" not in mean
    assert "activation_all" not in mean
    named = details([one, two], TAUS)
    assert named["a/image/activation"] == 0.5
    assert named["b/image/activation_above_0.5"] == 0
    assert [(r.layer, r.kind, r.dead) for r in rows([one, two])] == [
        ("a", "image", 1),
        ("b", "image", 0),
    ]


def test_only_what_chance_would_not_do_is_complained_of():
    def of(counts: list[int]):
        stats = layer_stats("b.3", load_of([counts, [0] * len(counts)], [sum(counts), 0]), None, ())
        assert stats is not None
        return complaint(stats, overload=3)

    assert of([50, 51, 49, 50, 47]) is None
    assert of([2, 0, 1, 0, 1, 1, 3]) is None  # eight tokens leave experts empty by chance
    dead = of([80, 70, 0, 90, 7])
    assert dead is not None
    assert dead.startswith("b.3: 1 of 5 experts got no token (number 2; random routing")
    assert "BiasBalancedRouter" in dead
    full = of([400, 7, 11, 13, 17])
    assert full is not None
    assert "the fullest expert (0) got 4.5 even shares" in full
