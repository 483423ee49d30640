import gzip
from collections import Counter

import pytest

from datamodules.decoders import Limits
from datamodules.index import ShardError
from datamodules.loading import Loading
from datamodules.shards import ShardDataModule
from datamodules.sources import Source, Sources
from datamodules.streamed_tar import read_stream
from datamodules.streaming import Streaming
from datamodules.transforms import View
from tests.datamodules.conftest import members, write_tar

COUNTS = [5, 7, 3, 8]


@pytest.fixture
def make_module(make_shards, tokenizer_path):
    def make(counts=COUNTS, change=None, shards=None, samples=45, **options):
        folder = shards or str(make_shards(counts, change=change, index=False))
        sources = Sources(pair=Source(folder, 3), text=Source(folder, 2))
        streaming = Streaming(samples, shuffle=8, allow_pipe=options.pop("allow_pipe", False))
        options = {"view": View(size=32, patch=8), "seed": 5, "loading": Loading()} | options
        return ShardDataModule(sources, tokenizer_path, streaming=streaming, **options)

    return make


def epoch_of(module, epoch=0, rank=0, world=1):
    loader = module.training_loader(rank, world)
    loader.sampler.set_epoch(epoch)
    return [(batch.pair.key, batch.text.key) for batch in loader]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_an_epoch_has_its_length_at_any_number_of_ranks_and_workers(make_module, workers, world):
    module = make_module(loading=Loading(workers))
    for rank in range(world):
        assert len(epoch_of(module, 0, rank, world)) == 45 // (3 * world)


def test_a_stream_is_seeded_and_epochs_ranks_and_resumed_runs_differ(make_module):
    module = make_module()
    assert epoch_of(module, 0) == epoch_of(make_module(), 0)
    assert epoch_of(module, 0) != epoch_of(module, 1)
    assert epoch_of(module, 0, 0, 2) != epoch_of(module, 0, 1, 2)
    resumed = make_module()
    resumed.load_state_dict(module.state_dict() | {"epoch": 0, "sample": 9})
    rest = epoch_of(resumed, 0)
    assert len(rest) == 12
    assert rest != epoch_of(module, 0)[3:]


def test_every_sample_comes_about_equally_often(make_module):
    counts = Counter(key for keys, _ in epoch_of(make_module(samples=2300)) for key in keys)
    assert len(counts) == sum(COUNTS)
    assert max(counts.values()) < 4 * min(counts.values())


def test_a_stream_reads_the_samples_that_are_there(make_shards):
    folder = make_shards([7], index=False)
    samples = list(read_stream(str(folder / "00000.tar"), Limits()))
    assert [sample.key for sample in samples] == [f"{n:09d}" for n in range(7)]
    assert samples[4].decode("txt").encode() == members(4)["txt"]


def test_every_cut_of_a_stream_is_found(tmp_path):
    shard = write_tar(tmp_path / "a.tar", {f"{n}": members(n) for n in range(3)}, index=False)
    content = shard.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    for size in [*range(0, end + 1024, 131), *range(0, end + 1024, 512)]:
        shard.write_bytes(content[:size])
        with pytest.raises(ShardError, match=r"a\.tar"):
            list(read_stream(str(shard), Limits()))


def test_a_cut_shard_stops_a_strict_run(make_module, make_shards):
    folder = make_shards([2], index=False)
    shard = folder / "00000.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"^Shard \S*00000\.tar is truncated"):
        epoch_of(make_module(shards=str(folder)))


@pytest.mark.parametrize("workers", [0, 2])
def test_failures_are_counted_against_the_budget(make_module, workers):
    def change(number, content):
        return content | {"txt": b""} if number == 6 else content

    options = {"loading": Loading(workers), "samples": 600}
    module = make_module(change=change, limits=Limits(max_errors=1), **options)
    batches = epoch_of(module)
    assert len(batches) == 200
    assert module.ledger.total == 1
    assert [kind for kind, _ in module.ledger.counts] == ["caption"]
    with pytest.raises(ShardError, match=r"00001\.tar: 000000006\.txt is empty"):
        epoch_of(make_module(change=change, **options))


def test_a_stream_of_bad_samples_only_ends(make_module):
    def change(number, content):
        return content | {"txt": b""}

    module = make_module([3], change, limits=Limits(max_errors=9))
    with pytest.raises(ShardError, match=r"No usable sample.*3 x caption"):
        epoch_of(module)


def test_compressed_streams_are_refused_before_they_unfold(tmp_path, make_shards):
    folder = make_shards([2], index=False)
    packed = tmp_path / "a.tar"
    packed.write_bytes(gzip.compress((folder / "00000.tar").read_bytes()))
    with pytest.raises(ShardError, match=r"compressed \(gzip\)"):
        list(read_stream(str(packed), Limits()))


def test_members_that_are_not_used_are_not_kept(tmp_path):
    content = members(0) | {"pkl": b"x" * 50, "npy": b"y" * 5000}
    shard = write_tar(tmp_path / "a.tar", {"0": content}, index=False)
    (sample,) = read_stream(str(shard), Limits(member_bytes=4000))
    assert sample.sizes["npy"] == 5000
    with pytest.raises(KeyError):
        sample.fetch("pkl")
    with pytest.raises(ValueError, match="5000 bytes"):
        sample.decode("npy")


def test_a_pipe_runs_only_when_it_is_allowed(make_module, make_shards, tmp_path):
    shard = make_shards([5], index=False) / "00000.tar"
    command = f"pipe:touch {tmp_path}/ran; cat {shard}"
    with pytest.raises(ShardError, match="shell command"):
        make_module(shards=command).setup("fit")
    assert not (tmp_path / "ran").exists()
    assert len(epoch_of(make_module(shards=command, allow_pipe=True))) == 15
    assert (tmp_path / "ran").exists()
