import functools
import http.server
import threading

import pytest

from datamodules.decoders import Limits
from datamodules.download import index_url
from datamodules.index import ShardError
from datamodules.reading import Samples
from datamodules.streamed_tar import read_stream
from tests.datamodules.conftest import members, write_tar


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *values):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_shards_with_the_same_name_do_not_collide_in_the_cache(server, tmp_path):
    folder, url = server
    write_tar(folder / "train/00000.tar", {"t": members(1)})
    write_tar(folder / "val/00000.tar", {"v": members(2)})
    shards = [f"{url}/train/00000.tar", f"{url}/val/00000.tar"]
    samples = Samples(shards, Limits(), tmp_path / "cache")
    assert [samples[n].decode("txt").encode() for n in (0, 1)] == [
        members(1)["txt"],
        members(2)["txt"],
    ]
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 2


def test_a_cached_shard_is_not_fetched_again_until_its_index_changes(server, tmp_path):
    folder, url = server
    shard = write_tar(folder / "00000.tar", {"a": members(1)})
    shards = [f"{url}/00000.tar"]
    Samples(shards, Limits(), tmp_path / "cache")[0].image()
    shard.unlink()
    Samples(shards, Limits(), tmp_path / "cache")[0].image()
    write_tar(shard, {"a": members(2)})
    text = Samples(shards, Limits(), tmp_path / "cache")[0].decode("txt")
    assert text.encode() == members(2)["txt"]


def test_a_shard_that_does_not_match_its_index_never_enters_the_cache(server, tmp_path):
    folder, url = server
    shard = write_tar(folder / "00000.tar", {"a": members(1)})
    shard.write_bytes(shard.read_bytes()[:-512])
    samples = Samples([f"{url}/00000.tar"], Limits(), tmp_path / "cache")
    with pytest.raises(ValueError, match="does not match its index"):
        samples[0].image()
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_remote_shard_without_an_index_says_how_to_make_one(server, tmp_path):
    folder, url = server
    write_tar(folder / "00000.tar", {"a": members(1)}, index=False)
    with pytest.raises(ShardError, match=r"404.*build_shards index"):
        Samples([f"{url}/00000.tar"], Limits(), tmp_path / "cache")


def test_a_remote_shard_can_be_streamed(server):
    folder, url = server
    write_tar(folder / "00000.tar", {"a": members(1), "b": members(2)}, index=False)
    assert [sample.key for sample in read_stream(f"{url}/00000.tar", Limits())] == ["a", "b"]
    with pytest.raises(ShardError, match="00001"):
        list(read_stream(f"{url}/00001.tar", Limits()))


def test_the_index_of_a_url_keeps_its_query():
    assert index_url("https://h/a/0.tar?key=1") == "https://h/a/0.index.json?key=1"
