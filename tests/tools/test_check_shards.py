import io
import json
import os
import tarfile

import pytest

from tests.datamodules.conftest import write_tar
from tests.tools.making import build_folder, build_shapes, image_folder, picture
from tools.build_shards.cli import main as build
from tools.check_shards import main

SMALL = ("--train", "5", "--val", "2", "--test", "0", "--size", "17", "--shard-size", "3")


def test_a_fresh_build_has_no_problem(tmp_path, capsys):
    assert build_shapes(tmp_path, *SMALL) == 0
    assert main([str(tmp_path)]) == 0
    assert "Everything agrees" in capsys.readouterr().out


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_card(path, change):
    card = json.loads(path.read_text())
    change(card["splits"]["train"]["shards"][0])
    path.write_text(json.dumps(card))


FAULTS = {
    "a flipped byte": (lambda out: flip(out / "train/00000.tar", 600), "sha256"),
    "a cut tar": (lambda out: os.truncate(out / "train/00000.tar", 4000), "truncated"),
    "no index": (lambda out: (out / "train/00000.index.json").unlink(), "does not exist"),
    "no tar": (lambda out: (out / "train/00001.tar").unlink(), "train/00001.tar"),
    "no card": (lambda out: (out / "card.json").unlink(), "unfinished"),
    "a broken card": (lambda out: (out / "card.json").write_text("{"), "card.json"),
    "a rest": (lambda out: (out / "train/00002.tar.part").write_bytes(b""), "00002.tar.part"),
    "a foreign shard": (
        lambda out: [
            (out / f"val/00007.{end}").write_bytes(
                (out / f"val/00000.{end}").read_bytes().replace(b"00000.tar", b"00007.tar")
            )
            for end in ("tar", "index.json")
        ],
        "the card does not list it",
    ),
    "other samples in the card": (
        lambda out: edit_card(out / "card.json", lambda shard: shard.update(samples=99)),
        "samples 99",
    ),
    "other captions in the card": (
        lambda out: edit_card(out / "card.json", lambda shard: shard.update(captions={"xx": 1})),
        "'xx'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_a_sentence(tmp_path, capsys, fault):
    assert build_shapes(tmp_path, *SMALL) == 0
    capsys.readouterr()
    damage, name = FAULTS[fault]
    damage(tmp_path)
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert name in error
    assert "Traceback" not in error


def test_samples_that_another_program_wrote_are_looked_into(tmp_path, capsys):
    members = {
        "a.png": picture(1)[:-60],
        "a.txt": b"one\n",
        "b.png": picture(2),
        "b.txt": b" \n",
        "c.txt": b"no picture\n",
        "d.png": picture(3),
        "d.json": b"[",
    }
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert build(["index", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    for sentence in (
        "sample a: the image cannot be decoded",
        "sample b: a caption is missing or empty",
        "sample c: there are 0 images",
        "sample d: the .json is not an object",
    ):
        assert sentence in error


def test_several_folders_are_checked_and_a_missing_one_is_refused(tmp_path, capsys):
    assert build_shapes(tmp_path / "one", *SMALL) == 0
    assert build_folder(image_folder(tmp_path), tmp_path / "two") == 0
    assert main([str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    assert main([str(tmp_path / "three")]) == 2
    assert main([str(tmp_path / "images")]) == 2
    assert "three" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "faulty"),
    [
        (["left.png", "right.png", "txt"], False),
        (["png", "cls"], False),
        (["left.png", "txt"], True),
        (["png", "left.png", "right.png", "txt"], True),
        (["left.png", "left.jpg", "right.png", "txt"], True),
        (["png"], True),
    ],
)
def test_a_sample_has_one_image_or_a_pair_and_a_text_or_a_class(tmp_path, names, faulty):
    contents = {"txt": b"words\n", "cls": b"3"}
    samples = {"a": {name: contents.get(name, picture(1)) for name in names}}
    write_tar(tmp_path / "train" / "00000.tar", samples)
    assert main([str(tmp_path)]) == int(faulty)
