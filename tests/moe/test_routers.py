"""Each router against a slow account of what it should do, and the loads it reports."""

import math
from functools import partial

import pytest
import torch

from mhmoe_mm.moe import (
    BiasBalancedRouter,
    Capacity,
    CosineScorer,
    ExpertChoiceRouter,
    GShardRouter,
    Kinds,
    SwitchRouter,
    TopKRouter,
    XMoEScorer,
    total_load,
)
from mhmoe_mm.moe.capacity import queue_position
from tests.moe.routers import ROUTERS

TOKENS, WIDTH, EXPERTS = 53, 13, 7


def tokens(seed=0, n=TOKENS):
    torch.manual_seed(seed)
    return torch.randn(n, WIDTH) * 2


def build(router, seed=1, **options):
    torch.manual_seed(seed)
    return router(WIDTH, EXPERTS, **options)


def slow_queue(expert, order):
    """Positions by walking: all first choices in order, then all second ones."""
    length = [0] * (EXPERTS + 1)
    position = torch.zeros_like(expert)
    for choice in range(expert.shape[1]):
        for row in order:
            e = int(expert[row, choice])
            position[row, choice] = length[e]
            length[e] += 1
    return position


def test_queues_are_walked_choice_by_choice_in_row_order_or_by_priority():
    torch.manual_seed(4)
    expert = torch.randint(0, EXPERTS + 1, (TOKENS, 3))
    assert torch.equal(queue_position(expert, EXPERTS), slow_queue(expert, range(TOKENS)))
    priority = torch.rand(TOKENS)
    order = sorted(range(TOKENS), key=lambda i: -priority[i])
    assert torch.equal(queue_position(expert, EXPERTS, priority), slow_queue(expert, order))


@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_top_k_drops_what_the_released_queue_drops(prioritized, training):
    capacity = Capacity(1.0, eval_share=0.25)
    router = build(TopKRouter, top_k=3, capacity=capacity, prioritized=prioritized).train(training)
    x = tokens()
    plan, load = router(x)
    prob = (x @ router.scorer.weight.T).softmax(1)
    gate, expert = prob.topk(3)
    limit = 3 * math.ceil(TOKENS / EXPERTS) if training else math.ceil(0.25 * TOKENS)
    order = sorted(range(TOKENS), key=lambda i: -prob[i].max()) if prioritized else range(TOKENS)
    kept = slow_queue(expert, order) < limit
    assert torch.equal(plan.expert.view(-1, 3), torch.where(kept, expert, EXPERTS))
    torch.testing.assert_close(plan.weight.view(-1, 3), gate * kept)
    assert load.dropped.sum() == (~kept).sum()
    assert load.dropped.sum() > 0


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("second", ["always", "random", "sampled"])
@pytest.mark.parametrize("scorer", [None, XMoEScorer])
def test_gshard_follows_its_second_expert_policy(second, normalize_before, scorer, monkeypatch):
    options = {"scorer": scorer} if scorer else {}
    router = build(
        GShardRouter,
        second=second,
        normalize_before=normalize_before,
        capacity=Capacity(0.6),
        **options,
    )
    x = tokens()
    draw = torch.rand(TOKENS, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(torch, "rand_like", lambda _: draw)
    plan, _ = router(x)
    prob = router.scorer(x).softmax(1).detach()
    limit, length, rows = int(0.6 * 2 * math.ceil(TOKENS / EXPERTS)), [0] * EXPERTS, []
    got = plan.expert.view(-1, 2)
    for n in range(TOKENS):
        best = int(prob[n].argmax())
        others = prob[n].clone()
        others[best] = -1
        gates = torch.stack([prob[n, best], others.max()])
        rows.append([best, int(others.argmax()), gates])
    if second == "sampled":  # any expert but the best may come, weighted with its own probability
        chosen = [(n, int(got[n, 1])) for n in range(TOKENS) if got[n, 1] < EXPERTS]
        assert all(rows[n][0] != e for n, e in chosen)
        assert any(rows[n][1] != e for n, e in chosen)
        return
    expected_expert = torch.full((TOKENS, 2), EXPERTS)
    expected_weight = torch.zeros(TOKENS, 2)
    for choice in (0, 1):
        for n, (best, runner_up, gates) in enumerate(rows):
            share = gates / gates.sum() if normalize_before else gates
            if choice == 1 and second == "random" and not 2 * share[1] > draw[n]:
                continue
            e = (best, runner_up)[choice]
            if length[e] < limit:
                expected_expert[n, choice], expected_weight[n, choice] = e, share[choice]
            length[e] += 1
    if not normalize_before:
        expected_weight /= expected_weight.sum(1, keepdim=True).clamp(min=1e-7)
    assert torch.equal(got, expected_expert)
    torch.testing.assert_close(plan.weight.view(-1, 2), expected_weight)


def test_switch_weighs_with_the_raw_probability_and_jitters_in_training_only():
    router = build(SwitchRouter, jitter=0.5)
    x = tokens()
    router.eval()
    plan, _ = router(x)
    prob = (x @ router.scorer.weight.T).softmax(1)
    torch.testing.assert_close(plan.weight, prob.max(1).values)
    router.train()
    assert not torch.equal(router(x)[0].weight, plan.weight)


def test_experts_that_choose_take_equal_shares_of_their_best_tokens():
    router, x = build(ExpertChoiceRouter, factor=1.5), tokens()
    plan, load = router(x)
    share = math.ceil(1.5 * TOKENS / EXPERTS)
    assert load.count.tolist() == [[share] * EXPERTS]
    prob = (x @ router.scorer.weight.T).softmax(1)
    for e in range(EXPERTS):
        mine = plan.token[plan.expert == e]
        assert set(mine.tolist()) == set(prob[:, e].topk(share).indices.tolist())
    assert not router.causal


def test_the_bias_moves_towards_balance_and_never_weighs():
    router, x = build(BiasBalancedRouter, rate=0.01), tokens(n=997)
    with torch.no_grad():
        router.scorer.weight[2] += 0.1  # a favourite
    _, before = router(x)
    for _ in range(300):
        _, load = router(x)
        router.step(load)
    _, after = router(x)
    spread, spread_before = (c.count.std() / c.count.mean() for c in (after, before))
    assert spread < 0.1 < spread_before
    plan, _ = router(x)
    score = router.scorer(x).sigmoid().gather(1, plan.expert.view(-1, 2))
    torch.testing.assert_close(plan.weight.view(-1, 2), score / score.sum(1, keepdim=True))
    assert "bias" in router.state_dict()


def test_x_moe_reads_its_embeddings_at_norm_one_and_a_half():
    router, x = build(TopKRouter, scorer=XMoEScorer), tokens()
    before = router.scorer(x)
    _, load = router(x)
    router.step(load)
    torch.testing.assert_close(router.scorer.embed.norm(dim=1), torch.full((EXPERTS,), 1.5))
    torch.testing.assert_close(router.scorer(x), before)


def test_a_true_cosine_ignores_length_and_learns_its_temperature():
    scorer, x = build(CosineScorer), tokens()
    torch.testing.assert_close(scorer(7 * x), scorer(x))
    assert scorer(x).abs().max() <= 1 / 0.3 + 1e-5
    scorer(x).square().sum().backward()
    assert scorer.log_temperature.grad != 0


@pytest.mark.parametrize("name", ROUTERS)
def test_loads_add_up_over_kinds_halves_and_padding(name):
    router, x = build(ROUTERS[name]), tokens()
    kinds = Kinds(torch.arange(TOKENS) % 3, ("a", "b", "c"))
    plan, load = router(x, None, kinds)
    carried = plan.expert < EXPERTS
    for kind in range(3):
        mine = plan.expert[carried & (kinds.index[plan.token] == kind)]
        assert load.count[kind].tolist() == torch.bincount(mine, minlength=EXPERTS).tolist()
    assert load.token.tolist() == [18, 18, 17]
    assert load.first.sum() == TOKENS
    torch.testing.assert_close(load.prob.sum(), torch.tensor(float(TOKENS)))
    twice = total_load([load, load])
    torch.testing.assert_close(twice.count, 2 * load.count)
    torch.testing.assert_close(twice.balance, load.balance)
    torch.testing.assert_close(twice.z_loss, load.z_loss)


def test_balance_is_one_when_uniform_and_e_at_worst():
    router, x = build(TopKRouter, top_k=1), tokens()
    with torch.no_grad():
        router.scorer.weight.zero_()
    torch.testing.assert_close(router(x)[1].balance, torch.tensor(1.0))
    with torch.no_grad():
        router.scorer.weight[2] = 1e4
    torch.testing.assert_close(router(x.abs())[1].balance, torch.tensor(float(EXPERTS)))


def test_loads_of_different_kinds_do_not_add_up():
    router, x = build(TopKRouter), tokens()
    other = Kinds(torch.zeros(TOKENS).long(), ("text",))
    with pytest.raises(ValueError, match="do not add up"):
        total_load([router(x)[1], router(x, None, other)[1]])


def test_only_routers_that_look_no_further_call_themselves_causal():
    assert build(TopKRouter).causal
    assert build(partial(TopKRouter, top_k=1, capacity=Capacity())).causal
    assert not build(
        TopKRouter, capacity=Capacity()
    ).causal  # second choices queue behind later firsts
    assert not build(TopKRouter, top_k=1, capacity=Capacity(), prioritized=True).causal


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (partial(TopKRouter, top_k=8), "top_k=8"),
        (partial(TopKRouter, top_k=0), "top_k=0"),
        (partial(TopKRouter, top_k=1, renormalize=True), "always 1"),
        (partial(BiasBalancedRouter, top_k=1), "always 1"),
        (partial(ExpertChoiceRouter, factor=0.0), "factor=0.0"),
        (partial(SwitchRouter, jitter=1.0), "jitter"),
        (partial(TopKRouter, scorer=partial(CosineScorer, temperature=0.0)), "temperature"),
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make(WIDTH, EXPERTS)


def test_an_empty_capacity_is_refused():
    with pytest.raises(ValueError, match="capacity is positive"):
        Capacity(0.0)


@pytest.mark.parametrize("share", [None, 0.07, 0.1, 0.25])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.1])
def test_a_capacity_is_the_same_number_counted_on_the_device_or_beforehand(factor, share):
    """0.07 x 100 is a little more than 7 in double precision, and 7 in single."""
    capacity = Capacity(factor, share)
    for tokens in range(1, 211):
        for training in (True, False):
            beforehand = capacity.rows(tokens, 2, 7, training)
            counted = capacity.rows(torch.tensor(tokens), 2, 7, training)
            assert isinstance(beforehand, int)
            assert counted == beforehand
    if share is not None:
        assert capacity.rows(100, 2, 7, False) == math.ceil(share * 100)


def test_experts_that_choose_take_as_many_tokens_with_a_mask_that_hides_none():
    """The share is counted on the device there, and must not round otherwise."""
    for factor in (0.7, 1.1, 2.0):
        router = build(ExpertChoiceRouter, factor=factor)
        for n in range(7, 211):
            x = tokens(n=n)
            counts = [router(x, keep)[1].count for keep in (None, torch.ones(n, dtype=torch.bool))]
            assert torch.equal(*counts)
