import random

import pytest

from datamodules.masking import BlockMask, Masking, TextMask
from mhmoe_mm.batches import IGNORED
from mhmoe_mm.inputs.tokenization import Tokenizer

SENTENCE = "the big red circle is left of a small blue star and the green square is right"


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer(tokenizer_path)


def masks(height, width, number=50, **options):
    mask = BlockMask(height, width, Masking(**options))
    return [mask(random.Random(seed)).view(height, width) for seed in range(number)]


@pytest.mark.parametrize("share", [0.1, 0.4, 0.75, 1.0])
@pytest.mark.parametrize(("height", "width"), [(14, 14), (16, 16), (4, 4), (7, 5), (1, 1), (2, 3)])
def test_the_number_of_masked_patches_is_exact(height, width, share):
    for mask in masks(height, width, image_share=share):
        assert mask.sum() == max(1, int(share * height * width))


def test_the_paper_s_counts():
    assert masks(16, 16, 1)[0].sum() == 102  # 40 % at patch 14
    assert masks(14, 14, 1, image_share=75 / 196)[0].sum() == 75


def test_masks_are_blocks_and_not_scattered_patches():
    def neighbours(mask):
        return (mask[1:] & mask[:-1]).sum() + (mask[:, 1:] & mask[:, :-1]).sum()

    scattered = sum(
        neighbours(mask.flatten()[perm].view(14, 14))
        for seed, mask in enumerate(masks(14, 14))
        for perm in [random.Random(seed).sample(range(196), 196)]
    )
    assert sum(neighbours(mask) for mask in masks(14, 14)) > 1.4 * scattered


def test_masks_reach_every_patch_and_differ():
    drawn = masks(7, 5, 200)
    assert sum(mask.int() for mask in drawn).min() > 0
    assert len({tuple(mask.flatten().tolist()) for mask in drawn}) > 150


def test_the_same_generator_gives_the_same_mask():
    mask = BlockMask(14, 14, Masking())
    assert mask(random.Random(3)).equal(mask(random.Random(3)))


@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.15, 0.5, 1.0])
def test_text_masking_never_touches_special_tokens(tokenizer, share, whole_word):
    ids, words = tokenizer.encode_words(f"{SENTENCE} zebra", 64)
    assert tokenizer.unk in ids
    mask = TextMask(tokenizer, share, Masking(whole_word=whole_word))
    for seed in range(100):
        token, target = mask(ids, words, random.Random(seed))
        chosen = [at for at, label in enumerate(target) if label != IGNORED]
        assert len(chosen) == max(1, round(share * (len(ids) - 3)))
        for at, original in enumerate(ids):
            if at in chosen:
                assert original not in tokenizer.specials
                assert target[at] == original
            else:
                assert token[at] == original
        assert tokenizer.pad not in token
        assert token.count(tokenizer.bos) == 1


def test_corruption_is_80_10_10(tokenizer):
    ids, words = tokenizer.encode_words(SENTENCE, 64)
    mask = TextMask(tokenizer, 1.0, Masking())
    fates = {"mask": 0, "same": 0, "other": 0}
    for seed in range(500):
        token, _ = mask(ids, words, random.Random(seed))
        for new, old in zip(token[1:-1], ids[1:-1], strict=True):
            fate = "mask" if new == tokenizer.mask else "same" if new == old else "other"
            fates[fate] += 1
    total = sum(fates.values())
    kept_by_chance = 0.1 / len(tokenizer.ordinary)
    assert fates["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert fates["same"] / total == pytest.approx(0.1 + kept_by_chance, abs=0.02)
    assert fates["other"] / total == pytest.approx(0.1 - kept_by_chance, abs=0.02)


def test_every_choice_can_be_masked(tokenizer):
    ids, words = tokenizer.encode_words(SENTENCE, 64)
    mask = TextMask(tokenizer, 0.15, Masking(mask_share=1.0, random_share=0.0))
    hit = set()
    for seed in range(200):
        token, target = mask(ids, words, random.Random(seed))
        chosen = {at for at, label in enumerate(target) if label != IGNORED}
        assert all(token[at] == tokenizer.mask for at in chosen)
        hit |= chosen
    assert hit == set(range(1, len(ids) - 1))


def test_whole_words_are_masked_whole(tokenizer):
    ids = [tokenizer.bos, 5, 6, 7, 8, 9, 10, tokenizer.eos]
    words = [-1, 0, 0, 1, 1, 1, 2, -1]
    mask = TextMask(tokenizer, 0.5, Masking(whole_word=True))
    for seed in range(50):
        _, target = mask(ids, words, random.Random(seed))
        chosen = [label != IGNORED for label in target]
        assert chosen[1] == chosen[2]
        assert chosen[3] == chosen[4] == chosen[5]
        assert 1 <= sum(chosen) <= 3


@pytest.mark.parametrize(
    "options",
    [
        {"image_share": 0},
        {"text_share": 1.5},
        {"mask_share": 0.8, "random_share": 0.3},
        {"min_block": 0},
        {"random_share": -0.1},
    ],
)
def test_shares_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"masking\."):
        Masking(**options)
