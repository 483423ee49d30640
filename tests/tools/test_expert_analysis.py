"""Every analysis equals one that takes the tokens one by one."""

import math
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from mhmoe_mm.callbacks.expert_stats import layer_stats
from mhmoe_mm.callbacks.routing_rows import different
from mhmoe_mm.callbacks.routing_tokens import CLASSES, EDGE_FROM
from mhmoe_mm.moe.routing import total_load
from tests.tools.routing import CHOICES, EXPERTS, HEADS, LAYERS, PIECES, chunk
from tools.expert_report.analysis import TAUS, Analysis
from tools.expert_report.contents import Fact
from tools.expert_report.diversity import random_distinct_diversity, random_diversity
from tools.expert_report.patch_spread import rank_correlation
from tools.expert_report.tally import information
from tools.expert_report.word_spread import read_word_list

NUMBER = 5


@pytest.fixture(scope="module")
def chunks():
    return [chunk(seed) for seed in range(NUMBER)]


@pytest.fixture(scope="module")
def run(chunks):
    analysis = Analysis(LAYERS, PIECES, listed=["Bank", "river"])
    for one in chunks:
        analysis.add(one)
    summary = analysis.summary("a", "b", "c", 7, None, "d", [Fact("x", "y")])
    step = analysis.patches.result(7)
    return analysis.contents(summary, patch_steps=[step])


def subtokens(chunks, layer):
    """(chunk, token, head, experts) of every sub-token that a layer routed."""
    for one in chunks:
        routing = one.layers[layer]
        for token, heads in zip(routing.rows.tolist(), routing.expert.tolist(), strict=True):
            for head, experts in enumerate(heads):
                yield one, token, head, [e for e in experts if e >= 0]


def kind_of(one, token, dimension):
    text = one.tokens.modality[token] == 1
    return {
        "all": "all",
        "modality": "text" if text else "image",
        "language": one.samples.language[one.tokens.sample[token]] if text else "",
        "task": "t",
        "token class": CLASSES[one.tokens.token_class[token]],
    }[dimension]


def test_counts_of_every_kind_are_those_of_every_sub_token(chunks, run):
    assert [layer.name for layer in run.layers] == [layer.name for layer in LAYERS]
    for layer in run.layers:
        found = {(c.dimension, c.kind): c for c in layer.counts}
        expected, tokens, nowhere = defaultdict(Counter), Counter(), Counter()
        for one, token, _, experts in subtokens(chunks, layer.name):
            for dimension in ("all", "modality", "language", "task", "token class"):
                kind = kind_of(one, token, dimension)
                if kind:
                    expected[dimension, kind].update(experts)
                    tokens[dimension, kind] += 1
                    nowhere[dimension, kind] += CHOICES - len(experts)
        assert found.keys() == expected.keys()
        for key, count in expected.items():
            assert list(found[key].count) == [count[e] for e in range(EXPERTS)]
            assert found[key].tokens == tokens[key]
            share = nowhere[key] / (CHOICES * tokens[key])
            assert found[key].dropped_share == pytest.approx(share)


def test_the_figures_of_a_layer_are_those_of_the_callback(chunks, run):
    for layer in run.layers:
        load = total_load([one.loads[layer.name] for one in chunks])
        stats = layer_stats(layer.name, load, None, TAUS)
        assert stats is not None
        own = {c.kind: c for c in layer.counts if c.dimension in ("all", "modality")}
        for kind in stats.kinds:
            same = own[kind.kind]
            assert (same.count, same.tokens, same.tau) == (kind.counts, kind.token, kind.tau)
            assert tuple(same.use) == tuple(kind.usage)
            assert tuple(same.random) == tuple(kind.random)
            assert same.dropped_share == kind.dropped_share
    assert all(gate.entropy == pytest.approx(1.0) for gate in run.gates)


def test_diversity_is_the_number_of_different_experts():
    random = np.random.default_rng(0)
    for experts in (3, 64, 65, 200):
        drawn = random.integers(-1, experts, size=(97, 3, 2))
        drawn[0], drawn[1] = experts - 1, -1
        expected = [len({e for e in row.ravel().tolist() if e >= 0}) for row in drawn]
        assert different(drawn, experts).tolist() == expected


def test_random_diversity_is_what_drawing_gives():
    random = np.random.default_rng(0)
    independent = random.integers(EXPERTS, size=(20_000, 6))
    mean = np.mean([len(set(row)) for row in independent.tolist()])
    assert random_diversity(EXPERTS, 6) == pytest.approx(mean, rel=0.01)
    pairs = random.random((20_000, 3, EXPERTS)).argsort(axis=2)[:, :, :2].reshape(-1, 6)
    mean = np.mean([len(set(row)) for row in pairs.tolist()])
    assert random_distinct_diversity(EXPERTS, 3, 2) == pytest.approx(mean, rel=0.01)


def token_diversity(chunks):
    """Of every token, by (number of chunk, token): mean over layers of different experts."""
    seen = defaultdict(lambda: defaultdict(set))
    number = {id(one): i for i, one in enumerate(chunks)}
    for layer in LAYERS:
        for one, token, _, experts in subtokens(chunks, layer.name):
            seen[number[id(one)], token][layer.name] |= set(experts)
    return {
        token: sum(len(s) for s in layers.values()) / len(layers) for token, layers in seen.items()
    }


def test_words_spread_as_their_tokens_do(chunks, run):
    diversity, found = token_diversity(chunks), defaultdict(list)
    for number, one in enumerate(chunks):
        words = defaultdict(list)
        for token, word in enumerate(one.tokens.word.tolist()):
            if word >= 0:
                words[one.tokens.sample[token], word].append(token)
        for (sample, _), tokens in words.items():
            text = "".join(PIECES[one.tokens.vocabulary_id[t]] for t in tokens).strip()
            mean = sum(diversity[number, t] for t in tokens) / len(tokens)
            if text != ".":
                found[text, one.samples.language[sample]].append((mean, len(tokens)))
    assert run.words is not None
    shown = {(w.word, w.language): w for w in run.words.frequent}
    assert shown.keys() == found.keys()
    for key, seen in found.items():
        word = shown[key]
        assert word.occurrences == len(seen)
        assert word.diversity == pytest.approx(np.mean([mean for mean, _ in seen]))
        assert word.pieces == pytest.approx(np.mean([pieces for _, pieces in seen]))
        assert word.listed == (key[0] == "bank")
    every, listed, rest = run.words.groups
    means = {key[0]: [mean for mean, _ in seen] for key, seen in found.items()}
    banks = [mean for key, seen in found.items() if key[0] == "bank" for mean, _ in seen]
    assert listed.occurrences == len(banks)
    assert listed.mean == pytest.approx(np.mean(banks))
    assert listed.standard_error == pytest.approx(np.std(banks, ddof=1) / len(banks) ** 0.5)
    assert every.occurrences == listed.occurrences + rest.occurrences
    for group in run.words.groups:
        assert sum(group.density) == pytest.approx(1)
    assert run.words.missing == ("river",)
    assert [w.diversity for w in run.words.most] == sorted(
        (w.diversity for w in run.words.most), reverse=True
    )
    assert means.keys() == {"a", "bank", "see", "us"}


def test_routes_are_the_commonest_first_choice_of_each_head(chunks, run):
    counts = defaultdict(Counter)
    for one in chunks:
        for layer in LAYERS:
            routing = one.layers[layer.name]
            for token, heads in zip(routing.rows.tolist(), routing.expert.tolist(), strict=True):
                if one.tokens.vocabulary_id[token] == 7:  # "us"
                    language = one.samples.language[one.tokens.sample[token]]
                    for head, experts in enumerate(heads):
                        if experts[0] >= 0:
                            counts[language, layer.name, head][experts[0]] += 1
    assert run.words is not None
    for word in run.words.frequent:
        if word.word != "us":
            continue
        image, text, fused = word.routes
        assert image == ()
        for name, routes in (("blocks.0.ffn.text", text), ("blocks.1.ffn.fused", fused)):
            for head, route in enumerate(routes):
                count = counts[word.language, name, head]
                assert count[route.expert] == max(count.values())
                assert route.share == pytest.approx(max(count.values()) / count.total())


def test_experts_of_a_token_meet_as_often_as_they_are_seen_together(chunks, run):
    by_layer = {t.layer: t for t in run.heads_together}
    for layer in LAYERS:
        expected = np.zeros((EXPERTS, EXPERTS), dtype=int)
        for one in chunks:
            for heads in one.layers[layer.name].expert[:, :, 0].tolist():
                for a, b in combinations(heads, 2):
                    if a >= 0 and b >= 0:
                        expected[a, b] += 1
                        expected[b, a] += 1
        found = by_layer[layer.name]
        assert [list(row) for row in found.count] == expected.tolist()
        assert found.same == pytest.approx(np.trace(expected) / expected.sum())
    pairs = {(t.layer, t.other) for t in run.layers_together}
    assert pairs == {
        ("blocks.0.ffn.image", "blocks.1.ffn.fused"),
        ("blocks.0.ffn.text", "blocks.1.ffn.fused"),
    }
    found = next(t for t in run.layers_together if t.layer == "blocks.0.ffn.text")
    expected = np.zeros((EXPERTS, EXPERTS), dtype=int)
    for one in chunks:
        first, second = (one.layers[name] for name in (found.layer, found.other))
        place = {token: i for i, token in enumerate(second.rows.tolist())}
        for i, token in enumerate(first.rows.tolist()):
            for head in range(HEADS):
                a, b = first.expert[i, head, 0], second.expert[place[token], head, 0]
                if a >= 0 and b >= 0:
                    expected[a, b] += 1
    assert [list(row) for row in found.count] == expected.tolist()
    for pair in found.strongest:
        chance = expected[pair.first].sum() * expected[:, pair.second].sum() / expected.sum()
        assert pair.lift == pytest.approx(expected[pair.first, pair.second] / chance)


def test_information_is_none_of_independent_and_all_of_equal_things():
    table = np.outer([3, 5, 7], [2, 4, 6, 8])
    assert information(table) == pytest.approx(0, abs=1e-12)
    assert information(np.diag([5, 5, 5])) == pytest.approx(math.log(3))


def test_experts_that_know_nothing_of_a_kind_have_a_score_near_nothing_and_others_do_not(run):
    scores = {(s.layer, s.dimension): s for s in run.specialisation}
    fused = "blocks.1.ffn.fused"
    blind, seen = scores[fused, "language"], scores[fused, "token class"]
    # Languages were given out without a look at the experts; the baseline is what that tells.
    assert blind.information > 0
    assert blind.corrected < 0.6 * blind.information
    assert seen.information > 5 * seen.baseline
    assert 0.02 < seen.share < 1
    assert (fused, "task") not in scores


def test_patches_are_compared_with_their_energy(chunks, run):
    diversity, values = token_diversity(chunks), []
    for number, one in enumerate(chunks):
        for token in np.flatnonzero(one.tokens.patch >= 0).tolist():
            values.append((diversity[number, token], float(one.tokens.energy[token])))
    assert run.patches is not None
    (step,) = run.patches.steps
    assert step.mean == pytest.approx(np.mean([d for d, _ in values]))
    assert step.edge == pytest.approx(np.mean([d for d, e in values if e >= EDGE_FROM]))
    assert step.flat == pytest.approx(np.mean([d for d, e in values if e < EDGE_FROM]))
    assert len(step.by_energy) == 10


def test_rank_correlation_is_that_of_ranks_with_ties_shared():
    assert rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 4, 9, 16])) == pytest.approx(1)
    # Ranks 1.5 1.5 3 4 against 4 3 2 1.
    expected = np.corrcoef([1.5, 1.5, 3, 4], [4, 3, 2, 1])[0, 1]
    found = rank_correlation(np.array([0, 0, 5, 7]), np.array([9, 8, 7, 1]))
    assert found == pytest.approx(expected)
    assert rank_correlation(np.array([1, 1, 1]), np.array([1, 2, 3])) is None


def test_choices_are_told_apart_in_the_gate(chunks, run):
    for gate in run.gates:
        for choice in gate.choices:
            count = Counter()
            for one in chunks:
                own = one.layers[gate.layer].expert[:, :, choice.choice - 1]
                count.update(own[own >= 0].tolist())
            ordered = sorted(count.get(e, 0) for e in range(EXPERTS))
            assert choice.unused == ordered.count(0)
            assert choice.top == pytest.approx(ordered[-1] / sum(ordered))  # a fifth of 7 is one
            assert choice.bottom == pytest.approx(ordered[0] / sum(ordered))
        assert [choice.choice for choice in gate.choices] == [1, 2]


def test_activation_per_token_is_that_per_sub_token_at_another_threshold(run):
    sub, whole = run.activation
    assert (sub.unit, whole.unit) == ("sub-token", "token")
    assert whole.value == sub.value
    assert whole.tau == pytest.approx(HEADS * sub.tau)
    assert sub.paper == 0.9071
    each = [layer.counts[0].use.activation for layer in run.layers]
    assert sub.value == pytest.approx(np.mean(each))


def test_a_layer_whose_plan_and_load_differ_is_told():
    analysis = Analysis(LAYERS, PIECES)
    one = chunk(0)
    wrong = one.loads["blocks.1.ffn.fused"]
    count = wrong.count.clone()
    count[0, 0] += 1
    analysis.add(
        one._replace(loads=one.loads | {"blocks.1.ffn.fused": wrong._replace(count=count)})
    )
    assert any("count different assignments" in line for line in analysis.complaints(4.0))


def test_a_word_list_has_comments_and_no_doubles():
    assert read_word_list("# PF\nbank\n\nbark # dog, tree\nbank\n") == ["bank", "bark"]
