import pytest

from datamodules.index import ShardError
from datamodules.sources import Source, Sources, expand_braces, expand_shards


@pytest.fixture
def folder(make_shards):
    return make_shards([1] * 4)


def names(shards):
    return [shard.rsplit("/", 1)[-1] for shard in shards]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", [0, 1, 2, 3]),
        ("/*.tar", [0, 1, 2, 3]),
        ("/0000[12].tar", [1, 2]),
        ("/00002.tar", [2]),
        ("/{00001..00003}.tar", [1, 2, 3]),
        ("/0000{3,0}.tar", [3, 0]),
    ],
)
def test_every_way_to_name_shards(folder, pattern, expected):
    assert names(expand_shards(f"{folder}{pattern}")) == [f"{n:05d}.tar" for n in expected]


def test_lists_and_file_urls(folder):
    shards = [f"file://{folder}/00003.tar", f"{folder}/0000[01].tar"]
    assert names(expand_shards(shards)) == ["00003.tar", "00000.tar", "00001.tar"]


def test_urls_are_expanded_but_not_looked_for():
    assert expand_shards("https://host/a/{08..10}.tar?x=1") == [
        f"https://host/a/{n}.tar?x=1" for n in ("08", "09", "10")
    ]


def test_braces_nest():
    assert expand_braces("{a{1..2},b}") == ["a1", "b", "a2", "b"]


def test_a_wrong_path_says_what_lies_nearby(folder):
    with pytest.raises(ShardError, match=r"No shards match .*trian.*holds .*train"):
        expand_shards(str(folder.parent / "trian"))
    with pytest.raises(ShardError, match=r"1\*\.tar.*00000\.tar, 00001\.tar"):
        expand_shards(str(folder / "1*.tar"))
    (folder / "empty").mkdir()
    with pytest.raises(ShardError, match="holds nothing"):
        expand_shards(str(folder / "empty"))


def test_one_missing_shard_of_a_range_is_named(folder):
    with pytest.raises(ShardError, match=r"No shards match .*\{00002\.\.00004\}"):
        expand_shards(f"{folder}/{{00002..00004}}.tar")


def test_a_pipe_is_refused_unless_it_is_allowed():
    with pytest.raises(ShardError, match="shell command"):
        expand_shards("pipe:cat x.tar")
    with pytest.raises(ShardError, match="shell command"):
        expand_shards(["PIPE:cat x.tar"])
    assert expand_shards("pipe:cat {1..2}", allow_pipe=True) == ["pipe:cat {1..2}"]


def test_a_shard_listed_twice_is_refused(folder):
    with pytest.raises(ShardError, match="listed twice"):
        expand_shards([str(folder), f"{folder}/00001.tar"])


def test_an_empty_list_and_an_endless_range_are_refused():
    with pytest.raises(ShardError, match="empty"):
        expand_shards([])
    with pytest.raises(ShardError, match="range"):
        expand_shards("http://h/{0..99999999}.tar")


def test_settings_that_cannot_be_meant_are_refused():
    with pytest.raises(ValueError, match="At least one"):
        Sources()
    with pytest.raises(ValueError, match="batch_size"):
        Source("x", 0)
    with pytest.raises(ValueError, match="languages"):
        Source("x", 1, languages=[])
    with pytest.raises(ValueError, match="max_tokens"):
        Source("x", 1, max_tokens=2)
