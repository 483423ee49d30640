import io
import json
import tarfile

import pytest

from datamodules.index import ShardError, index_path, read_index, scan_shard, write_index
from tests.datamodules.conftest import add_member, members, write_tar


@pytest.fixture
def shard(tmp_path):
    samples = {f"{number:09d}": members(number) for number in range(5)}
    return write_tar(tmp_path / "00003.tar", samples)


def test_offsets_point_at_the_members_data(shard):
    index = scan_shard(shard)
    content = shard.read_bytes()
    assert index.shard == "00003.tar"
    assert index.bytes == len(content)
    assert [sample.key for sample in index.samples] == [f"{n:09d}" for n in range(5)]
    for number, sample in enumerate(index.samples):
        for extension, data in members(number).items():
            offset, length = sample.members[extension]
            assert content[offset : offset + length] == data


def test_an_index_survives_writing_and_leaves_nothing_else_behind(shard):
    index = scan_shard(shard)
    write_index(index, index_path(shard))
    assert read_index(index_path(shard)) == index
    assert sorted(p.name for p in shard.parent.iterdir()) == ["00003.index.json", "00003.tar"]


def test_every_cut_is_found(shard, tmp_path):
    content = shard.read_bytes()
    cut = tmp_path / "cut.tar"
    end = max(at + size for s in scan_shard(shard).samples for at, size in s.members.values())
    whole = -(-end // 512) * 512 + 1024
    assert len(content) > whole
    for size in [*range(0, len(content), 97), *range(0, len(content), 512), len(content) - 1]:
        if size == whole:
            continue  # exactly the two end blocks: nothing is missing, and nothing can be told
        cut.write_bytes(content[:size])
        with pytest.raises(ShardError, match=r"cut\.tar"):
            scan_shard(cut)


def test_a_header_that_turned_to_noise_is_found(shard):
    content = bytearray(shard.read_bytes())
    third = scan_shard(shard).samples[2].members["png"][0] - 512
    content[third : third + 512] = b"x" * 512
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="neither a readable header nor the end"):
        scan_shard(shard)


@pytest.mark.parametrize("name", ["../x.png", "/abs/x.png", "a/../../x.png", "a\\x.png", "x\n.png"])
def test_unsafe_names_are_refused(tmp_path, name):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_member(tar, name, b"1")
    with pytest.raises(ShardError, match="unsafe name"):
        scan_shard(tmp_path / "a.tar")


def test_names_without_an_extension_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_member(tar, "README", b"1")
    with pytest.raises(ShardError, match=r"key\.extension"):
        scan_shard(tmp_path / "a.tar")


def test_a_key_that_comes_back_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.txt", "1.txt", "0.png"):
            add_member(tar, name, b"1")
    with pytest.raises(ShardError, match="'0' twice"):
        scan_shard(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ShardError, match=r"0\.png.*plain files"):
        scan_shard(tmp_path / "a.tar")


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_compressed_shards_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", f"w:{kind}") as tar:
        add_member(tar, "0.txt", b"1")
    with pytest.raises(ShardError, match="is compressed"):
        scan_shard(tmp_path / "a.tar")


def test_a_shard_without_samples_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w"):
        pass
    with pytest.raises(ShardError, match="no samples"):
        scan_shard(tmp_path / "a.tar")


def test_directories_and_leading_dots_are_no_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        folder = tarfile.TarInfo("./data")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add_member(tar, "./data/7.TXT", b"1")
    (sample,) = scan_shard(tmp_path / "a.tar").samples
    assert (sample.key, list(sample.members)) == ("data/7", ["txt"])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"samples": []},
        {"samples": [{"key": "0", "members": {"png": [512, 10**9]}}]},
        {"samples": [{"key": "0", "members": {}}, {"key": "0", "members": {}}]},
        {"samples": [{"members": {}}]},
        {"bytes": "many"},
    ],
)
def test_an_index_that_cannot_be_right_is_refused(shard, change):
    path = index_path(shard)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ShardError, match=r"00003\.index\.json"):
        read_index(path)


def test_a_sparse_file_is_refused(tmp_path):
    header = tarfile.TarInfo("0.png")
    header.type = tarfile.GNUTYPE_SPARSE
    raw = header.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(io.BytesIO(raw + b"\0" * 1024).getvalue())
    with pytest.raises(ShardError):
        scan_shard(tmp_path / "a.tar")
