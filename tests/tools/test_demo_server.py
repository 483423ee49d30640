"""The demo's server answers what the model says, refuses the rest with a sentence, and is of use to
nobody but the person at this machine."""

import json
import os
import re
import signal
import socket
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

import mhmoe_mm
from datamodules.decoders import Limits
from datamodules.reading import Samples
from mhmoe_mm.tasks.captioning import Captioning
from tests.datamodules.conftest import encoded, png
from tests.datamodules.task_shards import ANSWERS
from tests.programs import program
from tests.tools.demo_servers import (
    ask,
    dense,
    of_command,
    of_model,
    pretraining,
    running,
    send,
)
from tests.trained import CLASSES, LONGEST, Trained
from tools.build_shards.errors import InputError
from tools.demo.cli import main
from tools.demo.server import Server

PICTURE = png(3, side=31)
QUESTION = "is the red star"


@pytest.fixture(scope="module")
def servers(trained: Callable[[str], Trained]) -> Iterator[Callable[[str], Server]]:
    """servers(task) -> a running server of a tiny model of it, started once."""
    started = {}

    def server(name: str) -> Server:
        if name not in started:
            started[name] = context = running(of_model(trained(name)))
            context.server = context.__enter__()  # pyright: ignore[reportAttributeAccessIssue]
        return started[name].server

    yield server
    for context in started.values():
        context.__exit__(None, None, None)


@pytest.fixture
def vqa(servers) -> Server:
    return servers("vqa")


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    (tmp_path / "picture.png").write_bytes(PICTURE)
    return tmp_path / "picture.png"


# -- what the model says ------------------------------------------------------------------------


def test_an_answer_is_the_models_own_with_its_scores(vqa, trained, image_file):
    model = mhmoe_mm.load(trained("vqa").checkpoint)
    wanted = model.answer(image_file, QUESTION, top=5)
    reply = ask(vqa, "answer", PICTURE, text=f"  {QUESTION} ")
    assert reply.status == 200
    found = [(one["text"], one["score"]) for one in reply.json["ranked"]]
    assert [text for text, _ in found] == [text for text, _ in wanted]
    assert [score for _, score in found] == pytest.approx([score for _, score in wanted], abs=1e-6)
    assert reply.json["headline"] == wanted[0][0]
    assert set(dict(found)) <= set(ANSWERS)
    assert reply.json["seconds"] > 0


def test_experts_stand_beside_every_patch_and_word_with_their_weights(vqa):
    about, answer = send(vqa, "GET", "/about").json, ask(vqa, "answer", PICTURE, text=QUESTION).json
    (image,), (sentence,) = answer["images"], answer["sentences"]
    assert (image["rows"], image["columns"], image["width"]) == (2, 2, 31)
    words = [token["text"] for token in sentence["tokens"]]
    assert words == ["<s>", *QUESTION.split(), "</s>"], "no padding"
    sparse = [place for place, layer in enumerate(about["layers"]) if layer["num_experts"] == 5]
    assert sparse == list(range(len(about["layers"])))
    assert sparse
    for layer in sparse:
        patches = zip(image["experts"][layer], image["weights"][layer], strict=True)
        tokens = [
            (token["experts"][layer], token["weights"][layer]) for token in sentence["tokens"]
        ]
        read = [*patches, *tokens]
        assert len(read) == 4 + len(words)
        for experts, weights in read:
            assert [len(head) for head in experts] == [2, 2], "two heads, two choices"
            assert all(0 <= expert < 5 for head in experts for expert in head)
            assert all(0 < weight <= 1 for head in weights for weight in head)


def test_another_picture_is_read_by_other_experts(vqa):
    read = [
        ask(vqa, "answer", png(number, side=40), text=QUESTION).json["images"][0]["weights"]
        for number in (1, 1, 2)
    ]
    assert read[0] == read[1] != read[2]


def test_a_caption_is_the_models_own_for_any_number_of_beams(servers, trained, image_file):
    server = servers("captioning")
    model = mhmoe_mm.load(trained("captioning").checkpoint)
    assert isinstance(model.task, Captioning)
    usual = server.demo.model.task.decoding
    for beams in (None, 1, 5):
        if beams:
            model.task.decoding = type(usual)(beams, usual.length_penalty, usual.max_tokens)
        reply = ask(server, "caption", PICTURE, **({"beams": beams} if beams else {}))
        caption = model.caption(image_file)
        assert reply.json["headline"] == (caption or "(nothing)")
        words = [token["text"] for token in reply.json["sentences"][0]["tokens"]]
        assert " ".join(words[1:-1]) == caption
        assert server.demo.model.task.decoding == usual


def test_typed_captions_are_ranked_by_the_models_probability(servers, trained, image_file):
    texts = ["a red star", "the blue circle", "a big square of the left star"]
    model = mhmoe_mm.load(trained("retrieval").checkpoint)
    wanted = dict(zip(texts, model.probabilities(image_file, texts)[0].tolist(), strict=True))
    reply = ask(servers("retrieval"), "captions", PICTURE, text="\n".join(["", *texts, texts[0]]))
    found = {one["text"]: one["score"] for one in reply.json["ranked"]}
    assert found == pytest.approx(wanted, abs=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert [one["key"] for one in reply.json["sentences"]] == list(found)


def test_a_text_finds_the_images_of_the_shards_that_fit_best(servers, trained):
    made = trained("retrieval")
    samples = Samples([str(made.moved.parent / "shards/00000.tar")], Limits(), Path("none"))
    model = mhmoe_mm.load(made.checkpoint)
    score = model.score([samples[i].image() for i in range(7)], "a red star")[:, 0]
    wanted = [f"image {i}" for i in score.argsort(descending=True).tolist()[:5]]
    reply = ask(servers("retrieval"), "images", text="a red star").json
    assert [one["text"] for one in reply["ranked"]] == wanted
    assert [one["key"] for one in reply["images"]] == wanted
    assert all(one["png"] for one in reply["ranked"])


def test_a_file_of_captions_is_searched_where_none_are_typed(trained, tmp_path):
    (tmp_path / "captions.txt").write_text("a red star\n\nthe blue circle\na red star\n")
    given = ["--captions", str(tmp_path / "captions.txt")]
    with running(of_model(trained("retrieval"), *given, shards=False)) as server:
        found = ask(server, "captions", PICTURE).json["ranked"]
        assert {one["text"] for one in found} == {"a red star", "the blue circle"}
        typed = ask(server, "captions", PICTURE, text="a big square").json["ranked"]
        assert [one["text"] for one in typed] == ["a big square"]
        assert [mode["name"] for mode in send(server, "GET", "/about").json["modes"]] == [
            "captions"
        ]


def test_a_class_and_a_judgement_are_the_models_own(servers, trained, image_file, tmp_path):
    wanted = mhmoe_mm.load(trained("classification").checkpoint).classify(image_file, top=3)
    found = ask(servers("classification"), "classify", PICTURE).json["ranked"]
    assert [(one["text"], pytest.approx(one["score"], abs=1e-6)) for one in found] == wanted
    assert {one["text"] for one in found} == set(CLASSES)
    (tmp_path / "other.png").write_bytes(png(9))
    model = mhmoe_mm.load(trained("nlvr2").checkpoint)
    true = model.is_true(image_file, tmp_path / "other.png", "the red star is left")
    reply = ask(servers("nlvr2"), "judge", PICTURE, png(9), text="the red star is left").json
    assert reply["headline"] == str(true)
    assert [(one["key"], one["width"]) for one in reply["images"]] == [("left", 31), ("right", 20)]
    assert len(reply["sentences"]) == 2


def test_masked_words_are_filled_in_with_an_image_and_without(tokenizer_path):
    with running(pretraining(tokenizer_path)) as server:
        alone = ask(server, "fill", text="a <mask> star").json
        beside = ask(server, "fill", PICTURE, text="a <mask> star").json
        image = ask(server, "fill", PICTURE).json
        two = ask(server, "fill", text="<mask> red <mask>").json
    for reply in (alone, beside):
        best = [one["text"] for one in reply["ranked"]]
        assert len(best) == 5
        assert reply["headline"] == f"a {best[0]} star"
        assert not {"<s>", "<pad>", "</s>", "<unk>", "<mask>"} & set(best)
        shown = [token["text"] for token in reply["sentences"][0]["tokens"]]
        assert shown == ["<s>", "a", "<mask>", "star", "</s>"]
    assert [one["score"] for one in alone["ranked"]] != [one["score"] for one in beside["ranked"]]
    assert (len(image["images"]), image["ranked"], image["sentences"]) == (1, [], [])
    assert [one["note"] for one in two["ranked"]] == ["mask 1"] * 5 + ["mask 2"] * 5


def test_a_dense_model_answers_and_has_no_experts(tokenizer_path):
    with running(dense(tokenizer_path)) as server:
        assert send(server, "GET", "/about").json["layers"] == []
        answer = ask(server, "answer", PICTURE, text=QUESTION).json
    assert answer["headline"] in ANSWERS
    assert answer["images"][0]["experts"] == []


def test_examples_are_of_the_shards_and_about_the_task(servers):
    for name, images in (("vqa", 1), ("nlvr2", 2), ("retrieval", 1), ("classification", 1)):
        example = send(servers(name), "GET", "/example").json
        assert len(example["images"]) == images
        assert bool(example["text"]) == (name != "classification")
        assert "star" in (example["text"] or "star")


# -- what is refused ----------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 8,000 x 7,000 pixels."""
    head = struct.pack(">IIBBBBB", 8000, 7000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    length = struct.pack(">I", len(head))
    return b"\x89PNG\r\n\x1a\n" + length + chunk + struct.pack(">I", zlib.crc32(chunk))


BAD = {
    "no picture": ((), QUESTION, "no picture"),
    "two pictures": ((PICTURE, PICTURE), QUESTION, "2 pictures"),
    "a text file": ((b"hello",), QUESTION, "neither JPEG, PNG nor WebP"),
    "a GIF": ((encoded(Image.new("RGB", (9, 9)), "GIF"),), QUESTION, "neither JPEG, PNG nor WebP"),
    "half a PNG": ((PICTURE[:-400],), QUESTION, "damaged"),
    "too many pixels": ((bomb(),), QUESTION, "too many pixels: 50 million"),
    "no question": ((PICTURE,), " \n ", "There is no question"),
    "an unknown word": ((PICTURE,), "is the zebra red", "“zebra”"),
    "too long a question": ((PICTURE,), "is the red star " * 3, f"at most {LONGEST - 2}"),
    "half a letter": ((PICTURE,), "is \ud800", "not Unicode"),
    "a long text": ((PICTURE,), "a " * 20_000, "20,000 are allowed"),
}


@pytest.mark.parametrize(("images", "text", "words"), BAD.values(), ids=BAD)
def test_a_bad_question_is_refused_with_a_sentence(vqa, images, text, words):
    reply = ask(vqa, "answer", *images, text=text)
    assert reply.status == 400
    sentence = reply.json["error"]
    assert words in sentence
    assert re.fullmatch(r"[A-Z].*\.", sentence, re.DOTALL)
    assert "\n" not in sentence
    assert ask(vqa, "answer", PICTURE, text=QUESTION).status == 200, "the next one is answered"


WRONG = {
    "not JSON": b"{",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "no mode": b"{}",
    "another mode": b'{"mode": "caption"}',
    "another field": b'{"mode": "answer", "path": "/etc/passwd"}',
    "another type": b'{"mode": "answer", "text": 3}',
    "an image that is a number": b'{"mode": "answer", "images": [3]}',
    "an image by path": b'{"mode": "answer", "images": ["/etc/passwd"], "text": "is"}',
    "beams": b'{"mode": "answer", "beams": 1000}',
    "no beams": b'{"mode": "answer", "beams": true}',
    "not UTF-8": b'{"mode": "\xff"}',
}


@pytest.mark.parametrize("body", WRONG.values(), ids=WRONG)
def test_a_body_of_another_form_is_refused(vqa, body):
    reply = send(vqa, "POST", "/ask", body)
    assert (reply.status, list(reply.json)) == (400, ["error"])


def test_captions_are_checked_one_by_one(servers):
    for text, words in {
        "": "no captions",
        "a star\na zebra": "“zebra”",
        "\n".join(map(str, range(300))): "300 captions",
    }.items():
        reply = ask(servers("retrieval"), "captions", PICTURE, text=text)
        assert reply.status == 400
        assert words in reply.json["error"]


def test_what_is_too_large_is_refused_before_it_is_read(trained):
    with running(of_model(trained("vqa"), "--max-upload", "0.05")) as server:
        reply = ask(server, "answer", b"x" * 60_000, text=QUESTION)
        assert (reply.status, reply.json["error"]) == (
            400, "The image has 0.1 MB; at most 0.1 MB are taken (--max-upload).",
        )  # fmt: skip
        sent = send(server, "POST", "/ask", b"x" * 3_000_000)
        assert (sent.status, sent.headers["Content-Type"]) == (413, "application/json")
        assert "3 MB" in sent.json["error"]
        # A body that never comes: the answer is there all the same.
        with socket.create_connection(server.server_address[:2], timeout=10) as connection:
            head = "POST /ask HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.0 413 ")


def raw(server: Server, request: str) -> bytes:
    with socket.create_connection(server.server_address[:2], timeout=10) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


def test_a_body_must_say_its_length_and_keep_to_it(vqa):
    head = "POST /ask HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for rest, status in {
        "\r\n": 411,
        "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n": 411,
        "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}": 411,
        "Content-Length: -1\r\n\r\n": 400,
        "Content-Length: 50\r\n\r\n{": 400,
    }.items():
        assert raw(vqa, head + rest).startswith(f"HTTP/1.0 {status} ".encode())


# -- who may ask --------------------------------------------------------------------------------


def test_only_this_machine_by_its_own_names_is_answered(vqa):
    port = vqa.server_address[1]
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:9", "LOCALHOST:80"):
        assert send(vqa, "GET", "/", headers={"Host": host}).status == 200
    for host in ("evil.example", f"evil.example:{port}", "192.0.2.7", "localhost.evil.example", ""):
        reply = send(vqa, "GET", "/about", headers={"Host": host})
        assert (reply.status, list(reply.json)) == (403, ["error"])
    assert raw(vqa, "GET /about HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 403 ")


def test_pages_of_other_sites_cannot_ask(vqa):
    port = vqa.server_address[1]
    body = json.dumps({"mode": "answer"}).encode()
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert send(vqa, "POST", "/ask", body, own).status == 400, "it is let in, and lacks a picture"
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert send(vqa, "POST", "/ask", body, headers).status == 403
        assert send(vqa, "GET", "/example", headers=headers).status == 403
    assert send(vqa, "POST", "/ask", body, {"Content-Type": "text/plain"}).status == 415
    assert send(vqa, "GET", "/", headers={"Sec-Fetch-Site": "cross-site"}).status == 200, "a link"


def test_beyond_loopback_a_foreign_name_is_still_refused(trained):
    with running(of_model(trained("vqa"), "--host", "0.0.0.0")) as server:
        assert not server.loopback
        for host in ("192.0.2.7:8000", "[2001:db8::7]", "localhost", socket.gethostname()):
            assert server.is_own_host(host)
        for host in ("evil.example", "", "a b", "[evil]", "192.0.2.7@evil"):
            assert not server.is_own_host(host)


def test_there_are_four_addresses_and_none_of_them_is_a_file(vqa):
    for path in ("/../pyproject.toml", "/%2e%2e/etc/passwd", "//a", "/about/", "/ask", "/?x=1",
                 "/page/demo.html", "/etc/passwd", "/about?x"):  # fmt: skip
        assert send(vqa, "GET", path).status == 404
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        reply = send(vqa, method, "/about")
        assert reply.status == 501
        assert "Access-Control-Allow-Origin" not in reply.headers
    assert send(vqa, "POST", "/about", b"{}").status == 404


def test_every_reply_forbids_what_the_page_does_not_need(vqa):
    for reply in (send(vqa, "GET", "/"), send(vqa, "GET", "/nothing"), send(vqa, "GET", "/about")):
        policy = reply.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["X-Frame-Options"] == "DENY"
        assert "Python" not in reply.headers["Server"]
    assert "://" not in re.sub(
        r"http://www\.w3\.org/\S+|// .*", "", send(vqa, "GET", "/").body.decode()
    )


def test_a_fault_of_the_model_says_nothing_of_this_machine(vqa, monkeypatch, capfd):
    def broken(*args, **options):
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(vqa.demo.model, "answer", broken)
    reply = ask(vqa, "answer", PICTURE, text=QUESTION)
    assert (reply.status, reply.json) == (
        500,
        {"error": "The model failed; the terminal says more."},
    )
    assert "secret" in capfd.readouterr().err


def test_no_path_of_this_disk_is_told(vqa, trained):
    told = send(vqa, "GET", "/about").body + ask(vqa, "answer", PICTURE, text=QUESTION).body
    assert str(trained("vqa").run.parent).encode() not in told
    assert send(vqa, "GET", "/about").json["name"] == "unnamed/version_0"


# -- the command --------------------------------------------------------------------------------


def test_what_is_wrong_on_the_command_line_is_one_sentence(trained, tmp_path, vqa, capsys):
    run = str(trained("vqa").run)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.ckpt").write_bytes(b"\x80\x04cos\nsystem\n.")
    port = str(vqa.server_address[1])
    for options, words in {
        ("--model", str(tmp_path / "none")): "No such checkpoint",
        ("--model", str(tmp_path / "bad.ckpt")): "bad.ckpt",
        ("--model", run, "--port", port): f"Port {port} of 127.0.0.1 is taken",
        ("--model", run, "--port", "70000"): "--port is from 0 to 65535",
        ("--model", run, "--host", "no.such.host.invalid"): "cannot be served at",
        ("--model", run, "--max-upload", "0"): "--max-upload",
        ("--model", run, "--shards", str(tmp_path / "none")): "none",
        ("--model", run, "--captions", str(tmp_path / "empty.txt")): "0 captions",
        ("--model", run, "--captions", str(tmp_path / "absent.txt")): "absent.txt",
    }.items():
        assert main(list(options)) == 2
        said = capsys.readouterr().err
        assert said.startswith("demo: error: ")
        assert words in said
        assert said.count("\n") == 1


def test_captions_for_a_model_of_another_task_are_refused(trained, tmp_path):
    (tmp_path / "captions.txt").write_text("a star\n")
    given = ["--model", str(trained("vqa").run), "--captions", str(tmp_path / "captions.txt")]
    with pytest.raises(InputError, match="this one is of VQA"):
        of_command(*given)


def test_the_page_is_for_this_machine_unless_told_otherwise(trained, monkeypatch, capsys):
    def interrupted(server: Server, poll_interval: float):
        assert server.loopback
        assert server.server_address[0] == "127.0.0.1"
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupted)
    assert main(["--model", str(trained("vqa").run), "--port", "0"]) == 130
    assert capsys.readouterr().err == "Stopped.\n"


def test_the_program_says_where_it_is_and_ends_with_ctrl_c(trained):
    command = [sys.executable, "-m", "tools.demo", "--model", str(trained("vqa").run)]
    setting = {"cwd": Path(__file__).parents[2], "env": os.environ | {"PYTHONUNBUFFERED": "1"}}
    with program([*command, "--port", "0", "--host", "0.0.0.0"], **setting) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        about, where = demo.stdout.readline(), demo.stdout.readline()
        assert "VQA, 1 sparse layer" in about
        found = re.search(r"http://[\d.]+:(\d+)/", where)
        assert found is not None
        with socket.create_connection(("127.0.0.1", int(found[1])), timeout=10) as connection:
            connection.sendall(b"GET /about HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.0 200 ")
            demo.send_signal(signal.SIGINT)
            said = demo.stderr.read()
        assert demo.wait(timeout=20) == 130
    assert said.endswith("Stopped.\n")
    assert said.startswith("Warning: whoever reaches 0.0.0.0")
    assert "Traceback" not in said
