import json

from tests.tools.making import (
    LANGUAGES,
    card_of,
    easy_vqa_members,
    image_folder,
    openmoji_members,
    samples_in,
    write_zip,
)
from tools.build_shards.cli import main


def test_openmoji_keeps_its_splits_images_and_four_languages(tmp_path):
    members = openmoji_members(count=11)
    path = write_zip(tmp_path / "emoji.zip", members)
    assert main(["openmoji", str(path), "--out", str(tmp_path / "out")]) == 0
    samples = {sample["id"]: sample for sample in samples_in(tmp_path / "out")}
    assert len(samples) == 11
    for i in range(11):
        sample = samples[f"1F{i:03d}.png"]
        assert sample["split"] == ("test" if i % 3 == 2 else "train")
        assert sample["png"] == members[f"images/1F{i:03d}.png"]
        assert sample["captions"] == {code: [f"{code} emoji {i}"] for code in LANGUAGES}
        assert sample["txt"].decode() == f"en emoji {i}\n"
    assert card_of(tmp_path / "out")["languages"] == sorted(LANGUAGES)


def test_easy_vqa_gives_every_image_its_questions(tmp_path):
    members = easy_vqa_members(train=5, test=3)
    path = write_zip(tmp_path / "easy.zip", members)
    assert main(["easy-vqa", str(path), "--out", str(tmp_path / "out")]) == 0
    samples = {sample["id"]: sample for sample in samples_in(tmp_path / "out")}
    assert len(samples) == 8
    for split, count in {"train": 5, "test": 3}.items():
        for i in range(count):
            sample = samples[f"{split}/{i}"]
            assert sample["split"] == split
            assert sample["png"] == members[f"{split}/images/{i}.png"]
            assert sample["qa"] == [
                {"question": f"question {n}?", "answer": "yes"} for n in range(i + 1)
            ]
            lines = sample["txt"].decode().splitlines()
            assert lines == [f"question {n}? yes" for n in range(i + 1)]
    assert card_of(tmp_path / "out")["splits"]["train"]["questions"] == 1 + 2 + 3 + 4 + 5


def test_a_val_split_is_taken_from_the_training_samples_of_a_source_without_one(tmp_path):
    path = write_zip(tmp_path / "easy.zip", easy_vqa_members(train=31, test=3))
    out = tmp_path / "out"
    assert main(["easy-vqa", str(path), "--out", str(out), "--val-share", "0.5"]) == 0
    splits = card_of(out)["splits"]
    assert splits["test"]["samples"] == 3
    assert splits["train"]["samples"] + splits["val"]["samples"] == 31
    assert 5 < splits["val"]["samples"] < 26
    assert all(s["id"].startswith("test/") == (s["split"] == "test") for s in samples_in(out))


def test_jsonl_captions_may_be_one_many_or_in_several_languages(tmp_path):
    images = image_folder(tmp_path, count=3)
    records = [
        {"image": "a0.png", "caption": "one\u2028 line\nonly", "split": "train"},
        {"image": "a1.png", "caption": ["first", "second"], "split": "val"},
        {"image": "a2.png", "captions": {"de": "eins", "en": ["one", "two"]}, "split": "test"},
    ]
    captions = tmp_path / "captions.jsonl"
    captions.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "out"
    assert main(["folder", str(images), "--captions", str(captions), "--out", str(out)]) == 0
    one, many, languages = samples_in(out)
    assert (one["split"], one["txt"]) == ("train", b"one line only\n")
    assert "captions" not in one
    assert (many["split"], many["txt"]) == ("val", b"first\nsecond\n")
    assert (languages["split"], languages["txt"]) == ("test", b"eins\n")
    assert languages["captions"] == {"de": ["eins"], "en": ["one", "two"]}
    assert card_of(out)["languages"] == ["de", "en", "und"]


def test_a_tsv_keeps_quotes_and_takes_windows_line_ends_and_a_byte_order_mark(tmp_path):
    images = image_folder(tmp_path, count=2)
    captions = tmp_path / "captions.tsv"
    captions.write_bytes('\ufeffimage\ten\r\na0.png\ta "red" ball\r\na1.png\té ☺\r\n'.encode())
    out = tmp_path / "out"
    assert main(["folder", str(images), "--captions", str(captions), "--out", str(out)]) == 0
    texts = {sample["id"]: sample["captions"]["en"] for sample in samples_in(out)}
    assert texts == {"a0.png": ['a "red" ball'], "a1.png": ["é ☺"]}
