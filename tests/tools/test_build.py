import fcntl
import io
import os
from collections import Counter

import pytest
from PIL import Image

from datamodules.index import index_path, read_index, scan_shard
from tests.tools.making import (
    build_folder,
    build_shapes,
    card_of,
    image_folder,
    picture,
    samples_in,
    tree,
)

SMALL = ("--train", "5", "--val", "2", "--test", "3", "--size", "17", "--shard-size", "2")


def test_the_same_command_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        assert build_shapes(tmp_path / name, *SMALL) == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_a_folder_copied_elsewhere_gives_the_same_bytes_but_for_the_plan(tmp_path):
    built = []
    for name in ("one", "two"):
        images = image_folder(tmp_path / name)
        os.utime(images / "a1.png", (1000, 1000 + len(built)))
        assert build_folder(images, tmp_path / name / "out") == 0
        built.append(tree(tmp_path / name / "out"))
    assert built[0].pop("plan.json") != built[1].pop("plan.json")
    assert built[0] == built[1]


def test_every_shard_is_cut_at_the_size_and_has_an_index_that_a_scan_confirms(tmp_path):
    assert build_shapes(tmp_path, *SMALL) == 0
    sizes = {}
    for shard in sorted(tmp_path.rglob("*.tar")):
        index = read_index(index_path(shard))
        assert index == scan_shard(shard)
        sizes[f"{shard.parent.name}/{shard.name}"] = len(index.samples)
    assert sizes == {
        "train/00000.tar": 2,
        "train/00001.tar": 2,
        "train/00002.tar": 1,
        "val/00000.tar": 2,
        "test/00000.tar": 2,
        "test/00001.tar": 1,
    }


def test_keys_are_unique_over_all_splits_and_the_card_counts_right(tmp_path):
    assert build_shapes(tmp_path, *SMALL) == 0
    samples = samples_in(tmp_path)
    assert len(samples) == 10
    card = card_of(tmp_path)
    assert card["samples"] == 10
    for split, about in card["splits"].items():
        here = [sample for sample in samples if sample["split"] == split]
        assert about["samples"] == len(here) == sum(s["samples"] for s in about["shards"])
        assert about["captions"] == {"en": sum(len(s["captions"]["en"]) for s in here)}
        assert about["questions"] == sum(len(s["qa"]) for s in here)
        assert about["bytes"] == sum(p.stat().st_size for p in (tmp_path / split).glob("*.tar"))


def test_shards_cut_by_bytes_stay_below_them(tmp_path):
    images = image_folder(tmp_path, count=23)
    assert build_folder(images, tmp_path / "out", "--shard-size", "16KB") == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "train").glob("*.tar")]
    assert len(sizes) > 2
    # A tar is padded to whole records of 10240 bytes.
    assert all(size <= 16 * 1024 + 10240 for size in sizes)


def test_images_are_stored_byte_for_byte_and_named_by_what_they_are(tmp_path):
    images = image_folder(tmp_path)
    (images / "a3.png").write_bytes(picture(3, image_format="JPEG"))
    (images / "a4.png").write_bytes(picture(4, image_format="WEBP"))
    assert build_folder(images, tmp_path / "out") == 0
    for sample in samples_in(tmp_path / "out"):
        extension = {"a3.png": "jpg", "a4.png": "webp"}.get(sample["id"], "png")
        assert sample[extension] == (images / sample["id"]).read_bytes()


def test_images_shrink_to_the_size_and_never_grow(tmp_path):
    images = image_folder(tmp_path, count=2)
    (images / "a0.png").write_bytes(picture(0, width=58, height=29))
    assert build_folder(images, tmp_path / "out", "--image-size", "19") == 0
    sizes = {
        sample["id"]: Image.open(io.BytesIO(sample["png"])).size
        for sample in samples_in(tmp_path / "out")
    }
    assert sizes == {"a0.png": (38, 19), "a1.png": (13, 11)}


def test_shares_depend_on_the_name_alone(tmp_path):
    images = image_folder(tmp_path, count=59)
    shares = ("--val-share", "0.2", "--test-share", "0.3")
    splits = []
    for name, seed in {"one": "0", "two": "1"}.items():
        assert build_folder(images, tmp_path / name, "--seed", seed, *shares) == 0
        samples = samples_in(tmp_path / name)
        assert len(samples) == 59
        splits.append({sample["id"]: sample["split"] for sample in samples})
    assert splits[0] == splits[1]
    count = Counter(splits[0].values())
    assert 4 < count["val"] < 22
    assert 8 < count["test"] < 30
    orders = [[s["id"] for s in samples_in(tmp_path / name)] for name in ("one", "two")]
    assert orders[0] != orders[1]


def test_a_second_run_writes_no_shard_again(tmp_path):
    assert build_shapes(tmp_path, *SMALL) == 0
    before = tree(tmp_path)
    inodes = {path: path.stat().st_ino for path in tmp_path.rglob("*.tar")}
    assert build_shapes(tmp_path, *SMALL) == 0
    assert tree(tmp_path) == before
    assert inodes == {path: path.stat().st_ino for path in tmp_path.rglob("*.tar")}


@pytest.mark.parametrize(
    "damage", ["truncate", "flip", "no index", "no tar", "no card", "bad card"]
)
def test_a_damaged_build_is_repaired_by_the_same_command(tmp_path, damage):
    assert build_shapes(tmp_path, *SMALL) == 0
    before = tree(tmp_path)
    shard = tmp_path / "train" / "00001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    match damage:
        case "truncate":
            shard.write_bytes(shard.read_bytes()[:-512])
        case "flip":
            shard.write_bytes(content)
        case "no index":
            index_path(shard).unlink()
        case "no tar":
            shard.unlink()
        case "no card":
            (tmp_path / "card.json").unlink()
        case "bad card":
            (tmp_path / "card.json").write_text('{"format": 1}')
    assert build_shapes(tmp_path, *SMALL) == 0
    assert tree(tmp_path) == before


def test_a_changed_plan_is_refused_and_replaced_when_asked(tmp_path, capsys):
    out, clean = tmp_path / "out", tmp_path / "clean"
    assert build_shapes(out, *SMALL) == 0
    before = tree(out)
    (out / "notes.txt").write_text("mine")
    changed = (*SMALL[:-1], "3")
    assert build_shapes(out, *changed) == 2
    assert "other options or inputs" in capsys.readouterr().err
    assert {**before, "notes.txt": b"mine"} == tree(out)
    assert build_shapes(out, *changed, "--overwrite") == 0
    assert build_shapes(clean, *changed) == 0
    assert tree(out) == {**tree(clean), "notes.txt": b"mine"}


def test_a_changed_image_is_a_changed_plan(tmp_path, capsys):
    images = image_folder(tmp_path)
    assert build_folder(images, tmp_path / "out") == 0
    os.utime(images / "a1.png", (1000, 1000))
    assert build_folder(images, tmp_path / "out") == 2
    assert "other options or inputs" in capsys.readouterr().err


def test_a_folder_of_somebody_else_is_not_touched(tmp_path, capsys):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "00000.tar").write_bytes(b"precious")
    assert build_shapes(tmp_path, *SMALL) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert tree(tmp_path) == {"train/00000.tar": b"precious"}


def test_two_builds_never_write_into_one_folder(tmp_path, capsys):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert build_shapes(tmp_path, *SMALL) == 2
    finally:
        os.close(handle)
    assert "another build" in capsys.readouterr().err
    assert tree(tmp_path) == {}
