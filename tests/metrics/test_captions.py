"""Caption scores against those of the official programs."""

import doctest
import json
import math
from pathlib import Path

import pytest
import torch

from mhmoe_mm.metrics.bleu import bleu
from mhmoe_mm.metrics.caption_tokens import caption_tokens
from mhmoe_mm.metrics.captions import CaptionScores
from mhmoe_mm.metrics.cider import cider_d
from mhmoe_mm.metrics.rouge import caption_rouge_l, longest_common, rouge_l

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "captions.json").read_text())
WORDS = json.loads((FOLDER / "caption_words.json").read_text())
IMAGES = list(GOLDEN["res"])
CAPTIONS = [GOLDEN["tok_res"][image][0].split() for image in IMAGES]
REFERENCES = [[text.split() for text in GOLDEN["tok_gts"][image]] for image in IMAGES]


def test_bleu_is_that_of_the_official_program():
    assert bleu(CAPTIONS, REFERENCES) == pytest.approx(GOLDEN["bleu"], abs=1e-9)
    for image, scores in enumerate(zip(*GOLDEN["bleu_per"], strict=True)):
        own = bleu(CAPTIONS[image : image + 1], REFERENCES[image : image + 1])
        # The official program puts a tiny number where nothing matches.
        assert own == pytest.approx(scores, abs=1e-4)


def test_bleu_takes_the_shorter_of_two_references_that_are_as_close():
    brief, long = ["a"] * 2, ["a"] * 6
    assert bleu([["a"] * 4], [[long, brief]])[0] == 1
    assert bleu([["a"] * 4], [[long, ["a"]]])[0] == pytest.approx(math.exp(1 - 6 / 4))


def test_rouge_l_is_that_of_the_official_program():
    assert rouge_l(CAPTIONS, REFERENCES) == pytest.approx(GOLDEN["rouge_l"], abs=1e-12)
    scores = [caption_rouge_l(c, r) for c, r in zip(CAPTIONS, REFERENCES, strict=True)]
    assert scores == pytest.approx(GOLDEN["rouge_per"], abs=1e-12)


def slow_longest_common(a, b):
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + slow_longest_common(a[:-1], b[:-1])
    return max(slow_longest_common(a[:-1], b), slow_longest_common(a, b[:-1]))


@pytest.mark.parametrize(("a", "b"), [("abcab", "bacba"), ("", "ab"), ("aab", "aba"), ("abc", "d")])
def test_the_longest_common_sequence_is_that_of_the_definition(a, b):
    assert longest_common(a, b) == slow_longest_common(a, b)


def test_cider_d_is_that_of_the_official_program():
    mean, scores = cider_d(CAPTIONS, REFERENCES)
    assert mean == pytest.approx(GOLDEN["cider"], abs=1e-12)
    assert scores == pytest.approx(GOLDEN["cider_per"], abs=1e-12)


def test_cider_d_of_a_part_is_not_that_of_the_whole():
    _, part = cider_d(CAPTIONS[:2], REFERENCES[:2])
    assert abs(part[0] - GOLDEN["cider_per"][0]) > 0.01


def test_saying_a_right_word_twice_halves_what_single_words_score_in_cider_d():
    references = [[["dog"]], [["cat"]]]
    _, (once, _) = cider_d([["dog"], ["cat"]], references)
    _, (twice, _) = cider_d([["dog", "dog"], ["cat"]], references)
    assert once == pytest.approx(10 / 4)
    assert twice == pytest.approx(10 / 4 / 2 * math.exp(-(1**2) / (2 * 6**2)))


def test_an_empty_caption_scores_zero():
    empty = [[], *CAPTIONS[1:]]
    assert bleu([[]], REFERENCES[:1]) == [0, 0, 0, 0]
    assert caption_rouge_l([], REFERENCES[0]) == 0
    assert cider_d(empty, REFERENCES)[1][0] == 0


@pytest.mark.parametrize("image", IMAGES)
def test_golden_captions_are_cut_into_the_golden_words(image):
    for raw, words in (("gts", "tok_gts"), ("res", "tok_res")):
        cut = [" ".join(caption_tokens(text)) for text in GOLDEN[raw][image]]
        assert cut == GOLDEN[words][image]


@pytest.mark.parametrize("caption", WORDS)
def test_words_are_those_of_the_official_program(caption):
    assert " ".join(caption_tokens(caption)) == WORDS[caption]


def fed(size, tokenize=caption_tokens, keys=("res", "gts")):
    metric = CaptionScores(tokenize)
    for start in range(0, len(IMAGES), size):
        part = IMAGES[start : start + size]
        captions, references = ([GOLDEN[key][image] for image in part] for key in keys)
        metric.update([caption for (caption,) in captions], references, part)
    return metric


@pytest.mark.parametrize("size", [1, 3, 4])
def test_all_scores_of_raw_captions_are_the_official_ones_however_the_set_is_cut(size):
    figures = fed(size).compute()
    assert figures == fed(2, str.split, ("tok_res", "tok_gts")).compute()
    wanted = [*GOLDEN["bleu"], GOLDEN["rouge_l"], GOLDEN["cider"]]
    assert list(figures) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert [value.item() for value in figures.values()] == pytest.approx(wanted, abs=1e-6)


def test_rows_that_fill_up_a_batch_do_not_count():
    metric = fed(4)
    metric.update(["a", "b"], [["a"], ["b"]], ["8", "9"], torch.tensor([False, False]))
    assert metric.compute() == fed(4).compute()


def test_an_image_without_references_is_refused():
    with pytest.raises(ValueError, match="'9' has no reference captions"):
        CaptionScores().update(["a"], [[]], ["9"])


def test_no_captions_are_no_figure():
    assert CaptionScores().compute() == {}


def test_the_example_of_the_docs_holds():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried
    assert not failed
