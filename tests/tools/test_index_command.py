import os

import pytest

from datamodules.index import index_path, read_index, scan_shard
from tests.tools.making import build_shapes, tree
from tools.build_shards.cli import main

SMALL = ("--train", "5", "--val", "2", "--test", "0", "--size", "17", "--shard-size", "3")


@pytest.fixture
def bare(tmp_path):
    """Shards without an index, as another program leaves them, and the indices they should get."""
    assert build_shapes(tmp_path, *SMALL) == 0
    before = tree(tmp_path)
    for path in tmp_path.rglob("*.index.json"):
        path.unlink()
    return tmp_path, before


def test_index_makes_the_same_indices_as_the_build(bare, capsys):
    folder, before = bare
    assert main(["index", str(folder)]) == 0
    assert tree(folder) == before
    assert capsys.readouterr().out.count("written") == 3
    assert main(["index", str(folder / "train"), str(folder / "val" / "00000.tar")]) == 0
    assert capsys.readouterr().out.count("unchanged") == 3


def test_an_index_of_another_tar_is_replaced(bare):
    folder, _ = bare
    one, two = sorted((folder / "train").glob("*.tar"))
    main(["index", str(folder)])
    os.replace(two, one)
    assert main(["index", str(one)]) == 0
    assert read_index(index_path(one)) == scan_shard(one)


def test_a_truncated_tar_gets_no_index(bare, capsys):
    folder, _ = bare
    shard = folder / "train" / "00001.tar"
    os.truncate(shard, shard.stat().st_size // 2)
    assert main(["index", str(folder)]) == 2
    assert "00001.tar" in capsys.readouterr().err
    assert not index_path(shard).exists()


def test_what_holds_no_tar_is_refused(tmp_path, capsys):
    assert main(["index", str(tmp_path)]) == 2
    (tmp_path / "a.zip").write_bytes(b"")
    assert main(["index", str(tmp_path / "a.zip")]) == 2
    error = capsys.readouterr().err
    assert "holds no .tar" in error
    assert "is not a .tar" in error
