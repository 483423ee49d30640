from itertools import chain

import pytest
import torch
from torch.utils.data import get_worker_info

from datamodules.decoders import Limits
from datamodules.index import ShardError
from datamodules.loading import Loading
from datamodules.samples import TextSample
from datamodules.shards import ShardDataModule
from datamodules.sources import Source, Sources
from datamodules.transforms import View
from mhmoe_mm.batches import IGNORED, PretrainingBatch

COUNTS = [5, 7, 3, 8]
VIEW = View(size=32, patch=8)
SERIAL = Loading(threads=0, window=2)


@pytest.fixture
def make_module(make_shards, tokenizer_path):
    """make_module(counts, change, parts, **options): all parts from the same shards."""

    def make(counts=COUNTS, change=None, parts=("pair", "image", "text"), **options):
        folder = str(make_shards(counts, change=change))
        sizes = {"pair": 3, "image": 2, "text": 4}
        sources = Sources(**{part: Source(folder, sizes[part], ["en"]) for part in parts})
        options = {"loading": SERIAL, "view": VIEW, "seed": 5} | options
        return ShardDataModule(sources, tokenizer_path, val=sources, **options)

    return make


def keys(batches, part="pair"):
    parts = [getattr(batch, part) for batch in batches]
    return [key for batch in parts if batch is not None for key in batch.key]


def epoch_of(module, epoch, rank=0, world=1):
    loader = module.training_loader(rank, world)
    loader.sampler.set_epoch(epoch)
    return list(loader)


def assert_same(left: list[PretrainingBatch], right: list[PretrainingBatch]):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        for part in PretrainingBatch._fields:
            for x, y in zip(getattr(a, part), getattr(b, part), strict=True):
                assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize(
    "loading",
    [
        Loading(threads=1, window=2),
        Loading(threads=3, window=2),
        Loading(workers=1, window=2),
        Loading(workers=2, window=2),
    ],
    ids=["1 thread", "3 threads", "1 worker", "2 workers"],
)
def test_neither_workers_nor_threads_change_a_batch(make_module, loading):
    expected = [epoch_of(make_module(), epoch) for epoch in (0, 1)]
    module = make_module(loading=loading)
    for epoch in (0, 1):
        assert_same(epoch_of(module, epoch), expected[epoch])


def test_loading_leaves_the_global_generator_alone(make_module):
    module = make_module(loading=Loading(workers=1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch_of(module, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_epochs_differ_and_come_back_the_same(make_module):
    module = make_module()
    first, second = epoch_of(module, 0), epoch_of(module, 1)
    assert keys(first) != keys(second)
    assert_same(epoch_of(module, 0), first)


def test_a_sample_is_seen_anew_in_each_epoch(make_module):
    module = make_module(parts=("pair",))
    seen = [
        dict(zip(keys(e), (p for b in e for p in b.pair.masked), strict=True))
        for e in (epoch_of(module, 0), epoch_of(module, 1))
    ]
    both = seen[0].keys() & seen[1].keys()
    assert any(not torch.equal(seen[0][key], seen[1][key]) for key in both)


@pytest.mark.parametrize("world", [2, 3])
def test_the_union_over_ranks_is_what_one_rank_sees(make_module, world):
    module = make_module()
    alone = keys(epoch_of(module, 2))
    ranks = [epoch_of(module, 2, rank, world) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    merged = list(chain(*zip(*[keys(batches) for batches in ranks], strict=True)))
    assert merged == alone[: len(merged)]
    assert len(merged) == sum(COUNTS) // (3 * world) * 3 * world


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_run_goes_on_with_the_same_samples_at_any_world_size(make_module, world):
    module = make_module(parts=("pair",))
    whole = keys(epoch_of(module, 4))
    loader = module.training_loader()
    loader.sampler.set_epoch(4)
    batches = iter(loader)
    seen = keys([next(batches), next(batches)])
    state = module.state_dict()
    assert (state["epoch"], state["sample"]) == (4, 6)

    later = make_module(parts=("pair",))
    later.load_state_dict(state)
    parts = []
    for rank in range(world):
        again = later.training_loader(rank, world)
        again.sampler.set_epoch(4)
        parts.append(keys(again))
    rest = list(chain(*zip(*parts, strict=True)))
    assert seen + rest == whole[: 6 + len(rest)]
    assert len(rest) == (sum(COUNTS) - 6) // (3 * world) * 3 * world


def test_other_parts_go_on_too(make_module):
    module = make_module()
    whole = epoch_of(module, 1)
    loader = module.training_loader()
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    first = [next(batches) for _ in range(3)]
    later = make_module(loading=Loading(workers=2, window=2))
    later.load_state_dict(module.state_dict())
    assert_same(first + epoch_of(later, 1), whole)


def test_a_checkpoint_of_another_tokenizer_is_refused(make_module):
    module = make_module()
    state = module.state_dict() | {"tokenizer": "0" * 64}
    with pytest.raises(ValueError, match="another tokenizer"):
        module.load_state_dict(state)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_sees_every_sample_once(make_module, world):
    module = make_module()
    counted = {"pair": [], "image": [], "text": []}
    steps = set()
    for rank in range(world):
        loader = module.evaluation_loader("val", rank, world)
        batches = list(loader)
        steps.add((len(loader), len(batches)))
        for batch in batches:
            for part in counted:
                found = getattr(batch, part)
                if found is None:
                    continue
                image = found.masked.any(1) if hasattr(found, "masked") else None
                text = (found.target != IGNORED).any(1) if hasattr(found, "target") else None
                assert image is None or text is None or torch.equal(image, text)
                valid = image if text is None else text
                counted[part] += [k for k, v in zip(found.key, valid.tolist(), strict=True) if v]
    assert len(steps) == 1
    expected = sorted(keys([batch for batch in module.evaluation_loader("val")], "pair"))
    for part in counted:
        assert len(counted[part]) == sum(COUNTS)
        assert sorted(counted[part]) == sorted(set(expected))


def test_validation_is_the_same_every_time(make_module):
    module = make_module(parts=("pair",))
    loader = module.evaluation_loader("val")
    first, again = list(loader), list(loader)
    assert all(torch.equal(a.pair.token, b.pair.token) for a, b in zip(first, again, strict=True))


def test_fewer_shards_than_workers_and_ranks(make_module):
    module = make_module(counts=[13], loading=Loading(workers=2))
    assert sum(len(keys(epoch_of(module, 0, rank, 3))) for rank in range(3)) == 9


@pytest.mark.parametrize("only", ["pair", "image", "text"])
def test_parts_can_be_left_out(make_module, only):
    batch = epoch_of(make_module(parts=(only,)), 0)[0]
    present = {part for part in batch._fields if getattr(batch, part) is not None}
    assert present == {only}


def damaged(*numbers):
    """A change that cuts the images of some samples."""

    def change(number, content):
        return content | {"png": content["png"][:200]} if number in numbers else content

    return change


@pytest.mark.parametrize("loading", [SERIAL, Loading(workers=2), Loading(threads=2)])
def test_a_corrupt_image_is_named(make_module, loading):
    module = make_module(change=damaged(6), loading=loading)
    with pytest.raises(ShardError, match=r"^Shard \S*00001\.tar: 000000006\.png .*damaged"):
        epoch_of(module, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_budget_skips_and_counts_and_keeps_the_number_of_batches(make_module, workers):
    options = {"limits": Limits(max_errors=3), "loading": Loading(workers, 0, window=2)}
    module = make_module([5, 7, 3, 9], damaged(6, 7, 20), ("pair",), **options)
    batches = epoch_of(module, 0)
    assert len(batches) == 24 // 3
    assert not {key[-2:] for key in keys(batches)} & {"06", "07", "20"}
    assert module.ledger.total == 3
    assert {(kind, shard[-9:]): n for (kind, shard), n in module.ledger.counts.items()} == {
        ("decode", "00001.tar"): 2,
        ("decode", "00003.tar"): 1,
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_above_the_budget_the_run_stops(make_module, workers):
    options = {"limits": Limits(max_errors=2), "loading": Loading(workers, 0)}
    module = make_module([5, 7, 3, 9], damaged(6, 7, 20), ("pair",), **options)
    with pytest.raises(ShardError, match=r"3 samples failed.*max_errors=2"):
        epoch_of(module, 0)


def test_a_skipped_sample_is_not_counted_twice_in_validation(make_module):
    module = make_module(change=damaged(6), parts=("pair",), limits=Limits(max_errors=1))
    counted = [
        key
        for batch in module.evaluation_loader("val")
        for key, masked in zip(batch.pair.key, batch.pair.masked, strict=True)
        if masked.any()
    ]
    assert len(counted) == len(set(counted)) == sum(COUNTS) - 1


def test_data_that_are_all_bad_end_with_a_sentence(make_module):
    options = {"limits": Limits(max_errors=99)}
    module = make_module(counts=[4], change=damaged(*range(4)), parts=("pair",), **options)
    with pytest.raises(ShardError, match=r"No usable sample.*4 x decode in"):
        epoch_of(module, 0)


def test_a_missing_language_is_named_with_those_that_are_there(make_shards, tokenizer_path):
    source = Source(str(make_shards([7])), 3, languages=["fr"])
    module = ShardDataModule(Sources(text=source), tokenizer_path, view=VIEW)
    with pytest.raises(ShardError, match=r"00000\.tar: 00000000\d\.json.* fr; it has: en, de"):
        epoch_of(module, 0)


def test_more_batch_than_data_is_refused(make_module):
    module = make_module()
    with pytest.raises(ValueError, match=r"train\.pair has 23 samples.*3 x 8 ranks = 24"):
        module.training_loader(0, 8)


def test_a_wrong_path_is_refused_at_setup(tokenizer_path, tmp_path):
    module = ShardDataModule(Sources(pair=Source(str(tmp_path / "none"), 3)), tokenizer_path)
    with pytest.raises(ShardError, match="No shards match"):
        module.setup("fit")


def test_workers_do_the_work(make_module, monkeypatch):
    def row(self, sample, choice):
        assert get_worker_info() is not None, "in the main process"
        return original(self, sample, choice)

    original = TextSample.__call__
    monkeypatch.setattr(TextSample, "__call__", row)
    epoch_of(make_module(parts=("text",), loading=Loading(workers=1)), 0)
