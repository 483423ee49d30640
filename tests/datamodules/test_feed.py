"""A feed reads the texts of a batch before its images, and the rows are the same as one by one."""

from dataclasses import replace

import pytest
import torch

from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import CaptioningSamples, RetrievalSamples
from datamodules.loading import Loading
from datamodules.masking import Masking
from datamodules.order import seeded
from datamodules.reading import Sample
from datamodules.shards import ShardDataModule
from datamodules.sources import Source, Sources
from datamodules.transforms import View

VIEW = View(size=16, flip=0.5)
LOADING = Loading(threads=0)


def feed_of(task: str, folder, tokenizer_path: str):
    """The only feed of a data module of a task."""
    source = Source(str(folder), 7)
    if task == "pretraining":
        masking = Masking(pair_text_share=0.5)
        module = ShardDataModule(
            Sources(pair=source), tokenizer_path, view=VIEW, masking=masking, loading=LOADING
        )
    else:
        sample = RetrievalSamples() if task == "retrieval" else CaptioningSamples()
        module = FineTuningDataModule(source, sample, tokenizer_path, view=VIEW, loading=LOADING)
    module.training_loader()
    return module._feeds["train"][0]


TASKS = ["retrieval", "captioning", "pretraining"]


@pytest.mark.parametrize("task", TASKS)
def test_texts_are_read_before_images(task, make_shards, tokenizer_path, monkeypatch):
    feed = feed_of(task, make_shards([11, 5]), tokenizer_path)
    read, content = [], Sample.content
    monkeypatch.setattr(Sample, "content", lambda self, ext: read.append(ext) or content(self, ext))
    assert len(feed.draw([(0, place) for place in range(7)], [])) == 7
    assert read == ["txt"] * 7 + ["png"] * 7


@pytest.mark.parametrize("task", TASKS)
def test_a_row_does_not_depend_on_the_rows_beside_it(task, make_shards, tokenizer_path):
    feed = feed_of(task, make_shards([11, 5]), tokenizer_path)
    places = [(epoch, place) for epoch in (0, 1) for place in range(16)]
    together = feed.collate([row for row, _ in feed.draw(places, [])])
    alone = feed.collate([feed.draw([place], [])[0][0] for place in places])
    plain = feed.collate(
        [
            feed.row(feed.samples[number], seeded(feed.seed, feed.part, epoch, number))
            for epoch, number in (
                (epoch, feed.order.sample(epoch, place)) for epoch, place in places
            )
        ]
    )
    for other in (alone, plain):
        for found, expected in zip(together, other, strict=True):
            same = torch.equal if isinstance(found, torch.Tensor) else lambda a, b: a == b
            assert same(found, expected)


def test_an_image_that_fails_after_its_text_was_read_is_replaced(make_shards, tokenizer_path):
    def damage(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        return members | ({"png": members["png"][:40]} if number == 3 else {})

    feed = feed_of("retrieval", make_shards([16], change=damage), tokenizer_path)
    places = [(0, place) for place in range(16)]
    place = next(p for p in places if feed.order.sample(*p) == 3)
    failures = []
    assert feed.draw(places, failures) is None
    assert [(failure.kind, failure.key) for failure in failures] == [("decode", "000000003")]
    lenient = replace(feed, max_errors=1)
    rows = lenient.draw(places, [])
    row, asked_for = rows[place[1]]
    assert not asked_for
    assert row.key == "00000.tar/000000004"
    neighbour = feed.row(feed.samples[4], seeded(feed.seed, feed.part, 0, 4))
    assert torch.equal(row.pixel, neighbour.pixel)
    assert sum(asked for _, asked in rows) == 15
