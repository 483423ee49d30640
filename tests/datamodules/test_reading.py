import io
import json
import pickle
import random
from contextlib import suppress

import numpy as np
import pytest
import torch

from datamodules.decoders import Limits
from datamodules.errors import SampleError
from datamodules.index import ShardError, index_path, read_index
from datamodules.reading import LocalShard, Sample, Samples
from datamodules.sources import expand_shards
from tests.datamodules.conftest import members, write_tar


def open_samples(folder, cache=None, **limits) -> Samples:
    return Samples(expand_shards(str(folder)), Limits(**limits), cache or folder)


def array_bytes(array, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def test_samples_count_over_shards(make_shards):
    samples = open_samples(make_shards([3, 5, 2]))
    assert len(samples) == 10
    for number in range(10):
        assert samples[number].key == f"{number:09d}"
        assert samples[number].decode("txt").encode() == members(number)["txt"]
    assert samples[4].name == "00001.tar/000000004"


def test_samples_travel_to_a_fresh_process(make_shards):
    samples = open_samples(make_shards([3, 2]))
    samples[4].image()
    copy = pickle.loads(pickle.dumps(samples))
    assert torch.equal(copy[4].image(), samples[4].image())


def test_dangerous_members_are_never_opened(make_shards):
    class Bomb:
        def __reduce__(self):
            return (print, ("executed",))

    def add(number, content):
        return content | {name: pickle.dumps(Bomb()) for name in ("pkl", "pyd", "pickle", "pth")}

    sample = open_samples(make_shards([2], change=add))[1]
    opened = []
    fetch = sample.fetch
    sample.fetch = lambda extension: (opened.append(extension), fetch(extension))[1]
    sample.image(), sample.decode("txt"), sample.decode("json")
    for extension in ("pkl", "pyd", "pickle", "pth"):
        with pytest.raises(SampleError, match="never decoded"):
            sample.decode(extension)
    assert opened == ["png", "txt", "json"]


def test_members_above_the_byte_cap_are_not_read():
    def fetch(extension):
        raise AssertionError("read")

    sample = Sample("s.tar", "7", {"txt": 1001}, fetch, Limits(member_bytes=1000))
    with pytest.raises(SampleError, match=r"s\.tar: 7\.txt .*1001 bytes.*allows 1000"):
        sample.decode("txt")


@pytest.mark.parametrize(
    ("extension", "data", "cause"),
    [
        ("png", members(0)["png"][:300], "damaged"),
        ("jpg", b"", "neither JPEG"),
        ("txt", b"\xff\xfe", "not UTF-8"),
        ("json", b"{", "not JSON"),
        ("json", b"[" * 100_000, "not JSON"),
        ("cls", b"cat", "not a whole number"),
        ("npy", b"\x80\x04.", "not an array"),
        ("npy", array_bytes(np.array([{}], dtype=object), allow_pickle=True), "pickled"),
        ("npy", array_bytes(np.zeros(1000))[:200], "promises the shape"),
    ],
)
def test_a_damaged_member_is_named_with_its_cause(tmp_path, extension, data, cause):
    write_tar(tmp_path / "00000.tar", {"000000007": {extension: data}})
    with pytest.raises(SampleError, match=rf"00000\.tar: 000000007\.{extension} .*{cause}"):
        open_samples(tmp_path)[0].decode(extension)


def test_what_the_allowlist_has_is_decoded(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = {"cls": b"7\n", "npy": array_bytes(array), "json": b'{"a": 1}', "txt": b""}
    write_tar(tmp_path / "00000.tar", {"0": content})
    sample = open_samples(tmp_path)[0]
    assert sample.decode("cls") == 7
    assert sample.decode("json") == {"a": 1}
    assert sample.decode("txt") == ""
    assert np.array_equal(sample.decode("npy"), array)


def test_a_sample_without_an_image_says_what_it_has(tmp_path):
    write_tar(tmp_path / "00000.tar", {"5": {"txt": b"a", "pth": b"b"}})
    with pytest.raises(SampleError, match=r"5 has no image, only \.txt, \.pth"):
        open_samples(tmp_path)[0].image()


def test_a_shard_of_another_size_than_indexed_is_refused_at_once(make_shards):
    folder = make_shards([3, 4])
    shard = folder / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ShardError, match=r"00001\.tar has \d+ bytes but its index says"):
        open_samples(folder)


def test_a_changed_byte_is_found_when_asked_to_verify(make_shards):
    folder = make_shards([3])
    shard = folder / "00000.tar"
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    open_samples(folder)
    with pytest.raises(ShardError, match="its content has changed"):
        open_samples(folder, verify=True)


def test_every_changed_bit_is_found_or_is_nobodys(make_shards):
    folder = make_shards([3])
    shard = folder / "00000.tar"
    whole, samples = bytearray(shard.read_bytes()), open_samples(folder)
    owned = {
        place: (entry.key, extension)
        for entry in read_index(index_path(shard)).samples
        for extension, (at, length) in entry.members.items()
        for place in range(at, at + length)
    }
    draw = random.Random(0)
    for place in [*draw.sample(sorted(owned), 150), *draw.sample(range(len(whole)), 250)]:
        whole[place] ^= 1 << (bit := draw.randrange(8))
        shard.write_bytes(whole)
        bad = []
        for sample in (samples[n] for n in range(3)):
            for extension in sample.sizes:
                try:
                    sample.fetch(extension)
                except ShardError:
                    bad.append((sample.key, extension))
        assert bad == [owned[place]] if place in owned else bad == []
        whole[place] ^= 1 << bit


def test_a_changed_member_is_named_by_its_sample(make_shards):
    folder = make_shards([3])
    shard = folder / "00000.tar"
    content = bytearray(shard.read_bytes())
    at, length = read_index(index_path(shard)).samples[1].members["txt"]
    content[at + length - 1] ^= 1
    shard.write_bytes(content)
    samples = open_samples(folder)
    assert samples[0].decode("txt")
    with pytest.raises(SampleError, match=r"00000\.tar: 000000001\.txt .* restore the shard"):
        samples[1].decode("txt")


def test_an_index_with_any_changed_bit_is_refused_or_says_the_same(make_shards):
    folder = make_shards([2])
    path = index_path(folder / "00000.tar")
    whole, index, draw = bytearray(path.read_bytes()), read_index(path), random.Random(0)
    for place in draw.sample(range(len(whole)), 200):
        whole[place] ^= 1 << (bit := draw.randrange(8))
        path.write_bytes(whole)
        with suppress(ShardError):
            assert read_index(path) == index  # a blank turned into another, say
        whole[place] ^= 1 << bit


def test_a_shard_cut_while_it_is_open_is_an_error(make_shards):
    samples = open_samples(make_shards([3]))
    shard = samples.shards[0]
    samples[0].image()
    with open(shard, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(SampleError, match="truncated while it was being read"):
        samples[2].image()


def test_a_missing_index_names_the_command_that_makes_it(make_shards):
    folder = make_shards([3], index=False)
    with pytest.raises(ShardError, match=r"00000\.tar has no index.*tools\.build_shards index"):
        open_samples(folder)


def test_more_shards_than_are_kept_open(make_shards, monkeypatch):
    monkeypatch.setattr("datamodules.reading.OPEN_SHARDS", 2)
    samples = open_samples(make_shards([1, 2, 1, 3, 1]))
    for number in [7, 0, 3, 5, 1, 7, 6, 2, 4]:
        assert samples[number].key == f"{number:09d}"
        samples[number].image()


def test_an_empty_member_can_be_read(make_shards):
    folder = make_shards([1])
    index = json.loads(index_path(folder / "00000.tar").read_text())
    assert index["format"] == 1
    samples = open_samples(folder)
    shard = LocalShard(folder / "00000.tar", samples._index(0))
    assert shard.read(512, 0).shape == (0,)
