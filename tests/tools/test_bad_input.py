"""Every bad input: one sentence that names the culprit, exit code 2, nothing half-written."""

import io
import json
import zipfile

import pytest
from PIL import Image

from tests.tools.making import (
    build_folder,
    build_shapes,
    card_of,
    easy_vqa_members,
    image_folder,
    openmoji_members,
    picture,
    samples_in,
    tree,
    write_zip,
)
from tools.build_shards.cli import main
from tools.build_shards.images import checked


def refused(capsys, code: int, *names: str) -> str:
    """Checks the exit code, that stderr says one sentence, and that it names the culprits."""
    error = capsys.readouterr().err
    (sentence,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert "Traceback" not in error
    assert sentence.endswith(".")
    for name in names:
        assert name in sentence
    return sentence


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path)


def add_row(images, row: str) -> None:
    path = images.parent / "captions.tsv"
    path.write_text(path.read_text() + row + "\n")


def write_jsonl(images, *records: object) -> list[str]:
    """Replaces the captions; returns the arguments of the build."""
    path = images.parent / "captions.jsonl"
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_text("\n".join(lines) + "\n")
    out = images.parent / "out"
    return ["folder", str(images), "--captions", str(path), "--out", str(out)]


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("a9.png\tcaption", ["line 9", "a9.png", "not in"]),
        ("a6.png\tcaption", ["line 9", "a6.png", "again", "line 8"]),
        ("a9.png\tcaption\tmore", ["line 9", "3 columns instead of 2"]),
        ("a9.png", ["line 9", "1 columns instead of 2"]),
        ("\tcaption", ["line 9", "no image"]),
        ("../a9.png\tcaption", ["line 9", "unsafe", "../a9.png"]),
        ("/etc/a9.png\tcaption", ["line 9", "unsafe", "/etc/a9.png"]),
    ],
)
def test_a_bad_row_is_named_by_its_line(images, tmp_path, capsys, row, names):
    add_row(images, row)
    refused(capsys, build_folder(images, tmp_path / "out"), "captions.tsv", *names)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("caption", ["", " ", "\u00a0"])
def test_an_empty_caption_is_named(images, tmp_path, capsys, caption):
    path = images.parent / "captions.tsv"
    path.write_text(path.read_text().replace("caption 3", caption))
    refused(capsys, build_folder(images, tmp_path / "out"), "line 5", "empty caption", "a3.png")


def test_an_image_without_a_caption_is_named(images, tmp_path, capsys):
    (images / "deep").mkdir()
    (images / "deep" / "b.png").write_bytes(picture(1))
    refused(capsys, build_folder(images, tmp_path / "out"), "deep/b.png", "no caption")


def test_several_problems_are_counted_in_one_run(images, tmp_path, capsys):
    for row in ("b.png\tcaption", "c.png\tcaption", "a1.png\tcaption"):
        add_row(images, row)
    refused(capsys, build_folder(images, tmp_path / "out"), "a1.png", "first of 3 problems")


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ("picture\tcaption", ["line 1", "picture caption"]),
        ("image", ["line 1"]),
        ("image\tcaption\tcaption", ["line 1", "twice"]),
        ("image\tcaption\ten", ["line 1", "'caption'"]),
        ("image\tComment", ["line 1", "'Comment'"]),
    ],
)
def test_a_bad_header_is_shown(images, tmp_path, capsys, header, names):
    (images.parent / "captions.tsv").write_text(header + "\na0.png\tone\n")
    refused(capsys, build_folder(images, tmp_path / "out"), "captions.tsv", *names)


def test_a_split_that_does_not_exist_is_named(images, tmp_path, capsys):
    (images.parent / "captions.tsv").write_text("image\tsplit\ten\na0.png\tvalid\tone\n")
    refused(capsys, build_folder(images, tmp_path / "out"), "line 2", "'valid'", "a0.png")


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ("{", ["line 1", "not JSON"]),
        ([1], ["line 1", "object"]),
        ({"image": 3, "caption": "x"}, ["line 1", '"image"']),
        ({"image": "a0.png"}, ["line 1", '"caption"']),
        ({"image": "a0.png", "caption": "x", "captions": {}}, ["line 1", "either"]),
        ({"image": "a0.png", "captions": ["x"]}, ["line 1", "language codes"]),
        ({"image": "a0.png", "captions": {"English": "x"}}, ["line 1", "'English'"]),
        ({"image": "a0.png", "captions": {}}, ["line 1", "no caption", "a0.png"]),
        ({"image": "a0.png", "captions": {"en": []}}, ["line 1", "(en)", "a0.png"]),
        ({"image": "a0.png", "caption": ["x", " "]}, ["line 1", "empty caption", "a0.png"]),
        ({"image": "a0.png", "caption": 5}, ["line 1", "a text or a list"]),
        ({"image": "a0.png", "caption": "x", "split": 1}, ["line 1", "'1'", "a0.png"]),
    ],
)
def test_a_bad_json_line_is_named(images, capsys, record, names):
    refused(capsys, main(write_jsonl(images, record)), "captions.jsonl", *names)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"", ["captions.tsv", "empty"]),
        (b"\n\n", ["captions.tsv", "empty"]),
        (b"image\tcaption\na0.png\t\xff\n", ["captions.tsv line 2", "UTF-8"]),
        (b"image\tcaption\n", ["no sample"]),
    ],
)
def test_an_unreadable_captions_file_is_named(images, tmp_path, capsys, content, names):
    (images.parent / "captions.tsv").write_bytes(content)
    for path in images.iterdir():
        path.unlink()
    refused(capsys, build_folder(images, tmp_path / "out"), *names)


def test_missing_inputs_are_named(images, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    captions = ["--captions", str(images.parent / "captions.tsv")]
    refused(capsys, main(["folder", "nowhere", *captions, *out]), "nowhere")
    refused(capsys, main(["folder", str(images), "--captions", "no.tsv", *out]), "no.tsv")
    for command in ("openmoji", "easy-vqa"):
        refused(capsys, main([command, "no.zip", *out]), "no.zip")
    refused(capsys, main(["index", "nowhere"]), "nowhere")
    (images.parent / "captions.csv").write_text("image,caption\n")
    other = ["--captions", str(images.parent / "captions.csv")]
    refused(capsys, main(["folder", str(images), *other, *out]), "captions.csv", ".jsonl")
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_named(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    refused(capsys, build_shapes(tmp_path / "out", "--train", "3", "--val", "0"), "is a file")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--shard-size", "0"], ["--shard-size 0"]),
        (["--shard-size", "10 apples"], ["--shard-size 10 apples"]),
        (["--image-size", "0"], ["--image-size 0"]),
        (["--max-pixels", "0"], ["--max-pixels 0"]),
        (["--val-share", "1.5"], ["--val-share 1.5"]),
        (["--val-share", "-0.1"], ["--val-share -0.1"]),
        (["--val-share", "0.6", "--test-share", "0.4"], ["add up to 1"]),
    ],
)
def test_an_impossible_option_is_named(images, tmp_path, capsys, options, names):
    refused(capsys, build_folder(images, tmp_path / "out", *options), *names)
    assert not (tmp_path / "out").exists()


def test_an_impossible_shapes_corpus_is_refused(tmp_path, capsys):
    none = ("--train", "0", "--val", "0", "--test", "0")
    refused(capsys, build_shapes(tmp_path / "out", *none), "at least one sample")
    refused(capsys, build_shapes(tmp_path / "out", "--train", "-1"), "-1")
    refused(capsys, build_shapes(tmp_path / "out", "--size", "8"), "--size 8")
    share = ("--train", "3", "--val-share", "0.5")
    refused(capsys, build_shapes(tmp_path / "out", *share), "val split of its own")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_what_is_not_a_zip_is_named(tmp_path, capsys, content):
    path = tmp_path / "fake.zip"
    path.write_bytes(content)
    for command in ("openmoji", "easy-vqa"):
        refused(capsys, main([command, str(path), "--out", str(tmp_path / "out")]), "fake.zip")


@pytest.mark.parametrize(
    "name", ["../up.png", "/abs.png", "images/../../up.png", "C:/x.png", "a\\b"]
)
def test_a_zip_with_an_unsafe_path_is_refused(tmp_path, capsys, name):
    path = write_zip(tmp_path / "bad.zip", openmoji_members())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    refused(capsys, main(["openmoji", str(path), "--out", str(tmp_path / "out")]), "unsafe", name)


def test_a_zip_with_a_link_is_refused(tmp_path, capsys):
    path = write_zip(tmp_path / "bad.zip", openmoji_members())
    link = zipfile.ZipInfo("images/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(link, "/etc/passwd")
    refused(capsys, main(["openmoji", str(path), "--out", str(tmp_path / "out")]), "link.png")


def test_a_damaged_zip_member_is_named(tmp_path, capsys):
    members = openmoji_members()
    path = write_zip(tmp_path / "bad.zip", members)
    content = path.read_bytes()
    image = members["images/1F002.png"]
    at = content.index(image) + len(image) // 2
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    refused(capsys, main(["openmoji", str(path), "--out", str(tmp_path / "out")]), "1F002.png")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_an_image_cut_anywhere_is_found(image_format):
    whole = picture(5, image_format=image_format)
    checked(whole, "a.png", 1000)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"a\.png: the image"):
            checked(whole[:length], "a.png", 1000)


def test_bad_images_are_named_and_no_shard_is_left(images, tmp_path, capsys):
    gif = io.BytesIO()
    Image.new("P", (5, 5)).save(gif, "GIF")
    deep = io.BytesIO()
    Image.new("I;16", (5, 5)).save(deep, "PNG")
    bad = {
        b"nothing": "not a readable",
        b"": "not a readable",
        picture(3)[:-60]: "decoded",
        gif.getvalue(): "not a readable",
        deep.getvalue(): "16 bits",
        picture(3, 59, 61): "59 x 61",
    }
    for content, name in bad.items():
        (images / "a3.png").write_bytes(content)
        out = tmp_path / "out"
        code = build_folder(images, out, "--max-pixels", "3000", "--overwrite")
        refused(capsys, code, "captions.tsv line 5", "a3.png", name)
        assert not [path for path in tree(out) if path.endswith((".tar", ".part", "card.json"))]


def test_skipping_builds_the_rest_and_lists_every_skipped_sample(images, tmp_path, capsys):
    (images / "a3.png").write_bytes(picture(3)[:-60])
    (images / "a5.png").write_bytes(b"nothing")
    add_row(images, "a9.png\tcaption")
    add_row(images, "a1.png\tcaption again")
    out = tmp_path / "out"
    assert build_folder(images, out, "--on-error", "skip", "--shard-size", "1") == 0
    printed = capsys.readouterr().out
    card = card_of(out)
    assert card["samples"] == len(samples_in(out)) == 5
    assert sorted(problem["id"] for problem in card["skipped"]) == [
        "a1.png",
        "a3.png",
        "a5.png",
        "a9.png",
    ]
    assert "skipped: 4" in printed
    for problem in card["skipped"]:
        assert f"skipped {problem['id']}: " in printed.replace("\n", " ")
    assert {sample["id"] for sample in samples_in(out)} == {f"a{i}.png" for i in (0, 1, 2, 4, 6)}
    before = tree(out)
    assert build_folder(images, out, "--on-error", "skip", "--shard-size", "1") == 0
    assert tree(out) == before


def test_a_shard_with_skipped_samples_is_not_kept_by_a_build_that_refuses(images, tmp_path, capsys):
    (images / "a3.png").write_bytes(b"nothing")
    assert build_folder(images, tmp_path / "out", "--on-error", "skip") == 0
    capsys.readouterr()
    refused(capsys, build_folder(images, tmp_path / "out"), "a3.png")
    assert not (tmp_path / "out" / "card.json").exists()


def test_a_build_of_nothing_but_bad_images_is_refused(images, tmp_path, capsys):
    for path in images.iterdir():
        path.write_bytes(b"nothing")
    code = build_folder(images, tmp_path / "out", "--on-error", "skip")
    refused(capsys, code, "all 7 samples were skipped")
    assert not (tmp_path / "out" / "card.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("train/images/2.png", None, ["train/images/2.png is missing", "3 questions", "image 2"]),
        ("train/images/9.png", picture(1), ["train/images/9.png", "no question"]),
        ("test/questions.json", None, ["test/questions.json"]),
        ("test/questions.json", b"{", ["test/questions.json", "not JSON"]),
        ("test/questions.json", b"{}", ["test/questions.json", "not a list"]),
        ("test/questions.json", b'[["q", "yes"]]', ["test/questions.json entry 0", "image id"]),
        ("test/questions.json", b'[["q", "maybe", 0]]', ["test/questions.json", "'maybe'"]),
        ("answers.txt", None, ["answers.txt"]),
        ("train/images/2.png", b"nothing", ["train/images/2.png", "not a readable"]),
    ],
)
def test_a_faulty_easy_vqa_is_named(tmp_path, capsys, name, content, names):
    members = easy_vqa_members()
    if content is None:
        del members[name]
    else:
        members[name] = content
    path = write_zip(tmp_path / "easy.zip", members)
    out = tmp_path / "out"
    refused(capsys, main(["easy-vqa", str(path), "--out", str(out)]), *names)
    assert not [path for path in tree(out) if path.endswith((".part", "card.json"))]


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("captions.tsv", None, ["captions.tsv"]),
        ("images/1F002.png", None, ["captions.tsv line 4", "images/1F002.png"]),
        ("images/1F999.png", picture(1), ["images/1F999.png", "no caption"]),
        ("images/1F002.png", picture(2)[:50], ["1F002.png", "cannot be decoded"]),
    ],
)
def test_a_faulty_openmoji_is_named(tmp_path, capsys, name, content, names):
    members = openmoji_members()
    if content is None:
        del members[name]
    else:
        members[name] = content
    path = write_zip(tmp_path / "emoji.zip", members)
    refused(capsys, main(["openmoji", str(path), "--out", str(tmp_path / "out")]), *names)
