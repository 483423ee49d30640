"""Captions as rows: matched in retrieval, corrupted or kept as references in captioning."""

import random
from collections import Counter

import pytest
import torch

from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import CaptioningSamples, RetrievalSamples
from datamodules.loading import Loading
from datamodules.masking import CaptionMask, Masking
from datamodules.sources import Source
from datamodules.transforms import View
from mhmoe_mm.batches import IGNORED
from mhmoe_mm.inputs.tokenization import Tokenizer
from tests.datamodules.task_shards import caption_members

COUNTS = [5, 7, 3]


@pytest.fixture
def make_module(make_shards, tokenizer_path):
    def make(task, languages=None, batch_size=1):
        shards = str(make_shards(COUNTS, change=caption_members))
        source = Source(shards, batch_size, languages)
        loading, view = Loading(threads=0), View(size=16, patch=8)
        return FineTuningDataModule(
            source, task, tokenizer_path, val=source, view=view, loading=loading
        )

    return make


def captions_per_image(loader):
    return Counter(image for batch in loader for image in batch.image_id.tolist())


@pytest.mark.parametrize(
    ("languages", "more"), [(None, 0), (["en"], 0), (["en", "de"], 1), (["de"], None)]
)
def test_an_evaluation_matches_every_caption_of_the_languages_asked_for(
    make_module, languages, more
):
    loader = make_module(RetrievalSamples(), languages).evaluation_loader("val")
    expected = {i: 1 if more is None else i % 5 + 1 + more for i in range(15)}
    assert captions_per_image(loader) == expected


def test_a_training_epoch_sees_each_image_once_or_each_caption_once(make_module):
    drawn = make_module(RetrievalSamples()).training_loader()
    assert captions_per_image(drawn) == dict.fromkeys(range(15), 1)
    every = make_module(RetrievalSamples(every_caption=True)).training_loader()
    assert captions_per_image(every) == {i: i % 5 + 1 for i in range(15)}
    assert len({(*batch.token[0].tolist(), batch.key[0]) for batch in every}) == 45


def test_captions_of_one_image_have_its_pixels(make_module):
    pixels = {}
    for batch in make_module(RetrievalSamples()).evaluation_loader("val"):
        pixel = pixels.setdefault(batch.image_id.item(), batch.pixel)
        assert torch.equal(pixel, batch.pixel)


def test_an_evaluation_of_captioning_has_all_references_and_nothing_to_predict(make_module):
    module = make_module(CaptioningSamples(), ["en", "de"], batch_size=4)
    seen = {}
    for batch in module.evaluation_loader("val"):
        assert (batch.target == IGNORED).all()
        for number in torch.nonzero(batch.valid)[:, 0].tolist():
            token = batch.token[number][~batch.pad[number]].tolist()
            references = batch.references[number]
            assert token == module.tokenizer.encode(references[0], 64)
            seen[batch.image_id[number]] = len(references)
    assert seen == {str(70 + i): i % 5 + 2 for i in range(15)}


def test_captions_are_corrupted_anew_in_every_epoch(make_module):
    module = make_module(CaptioningSamples(every_caption=True), batch_size=45)
    (first,) = module.training_loader()
    loader = module.training_loader()
    loader.sampler.set_epoch(1)
    (second,) = loader
    assert sorted(first.key) == sorted(second.key)
    assert first.references == [[]] * 45
    predicted = first.target != IGNORED
    assert predicted.any(dim=1).all()
    assert not (predicted & first.pad).any()
    assert not predicted[:, 0].any()
    assert not torch.equal(first.token, second.token)


@pytest.fixture
def mask(tokenizer_path):
    return CaptionMask(Tokenizer(tokenizer_path), 0.7, Masking())


@pytest.mark.parametrize(
    ("length", "count"), [(2, 1), (3, 2), (4, 3), (5, 4), (7, 5), (11, 8), (64, 45)]
)
def test_the_share_counts_the_ends_but_never_takes_the_first(mask, length, count):
    ids = [0, *[7] * (length - 2), 2]
    for seed in range(50):
        _, target = mask(ids, random.Random(seed))
        chosen = [at for at, label in enumerate(target) if label != IGNORED]
        assert len(chosen) == count
        assert 0 not in chosen
        assert all(target[at] == ids[at] for at in chosen)


def test_the_end_is_chosen_as_often_as_any_token(mask):
    ids = [0, 7, 8, 9, 10, 11, 2]
    times = Counter(
        at
        for seed in range(2000)
        for at, label in enumerate(mask(ids, random.Random(seed))[1])
        if label != IGNORED
    )
    assert all(abs(times[at] / 2000 - 5 / 6) < 0.05 for at in range(1, 7))


def test_most_chosen_tokens_become_the_mask_some_another_some_stay(mask):
    ids = [0, *range(5, 15), 2]
    fates = Counter()
    for seed in range(1000):
        corrupted, target = mask(ids, random.Random(seed))
        for token, new, label in zip(ids, corrupted, target, strict=True):
            if label == IGNORED:
                assert new == token
            else:
                fates["mask" if new == 4 else "same" if new == token else "other"] += 1
    total = sum(fates.values())
    shares = [fates[fate] / total for fate in ("mask", "other", "same")]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"sample\.share must lie in \(0, 1\], got 1\.5"):
        CaptioningSamples(share=1.5)
