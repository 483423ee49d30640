"""Each official format from end to end: what is in the shards is what was in the files."""

import json
from collections import Counter

import pytest

from tests.tools import official
from tests.tools.making import card_of, samples_in
from tools import check_shards
from tools.build_shards.cli import main


@pytest.fixture
def build(tmp_path):
    """build(arguments) -> samples by id; the shards pass the check, the images are unchanged."""

    def run(*arguments: str) -> dict[str, dict]:
        out = tmp_path / "out"
        assert main([*arguments, "--out", str(out)]) == 0
        assert check_shards.main([str(out)]) == 0
        return {sample["id"]: sample for sample in samples_in(out)}

    return run


def answers_in(folder) -> list[str]:
    return json.loads((folder / "out" / "answers.json").read_text())


def test_vqav2_keeps_ids_questions_types_and_all_ten_answers(build, tmp_path):
    arguments = official.vqav2(tmp_path / "raw", images=3, each=5)
    samples = build(*arguments, "--min-answers", "1")
    assert len(samples) == 9
    sample = samples["train/2"]
    assert (sample["split"], sample["image_id"]) == ("train", 2)
    image = tmp_path / "raw" / "train2014" / "COCO_train2014_000000000002.jpg"
    assert sample["jpg"] == image.read_bytes()
    assert [qa["question_id"] for qa in sample["qa"]] == [2000, 2001, 2002, 2003, 2004]
    assert sample["qa"][3] == {
        "question_id": 2003,
        "question": "What is thing 3 of image 2?",
        "answer": "net",
        "answers": official.TEN,
        "question_type": "what is",
        "answer_type": "other",
    }
    splits = card_of(tmp_path / "out")["splits"]
    assert {split: about["questions"] for split, about in splits.items()} == dict.fromkeys(
        ("train", "val", "test"), 15
    )


def test_questions_of_a_split_without_annotations_have_no_answers(build, tmp_path):
    samples = build(*official.vqav2(tmp_path / "raw"), "--min-answers", "1")
    assert samples["test/1"]["qa"][1] == {
        "question_id": 1001,
        "question": "What is thing 1 of image 1?",
    }
    assert samples["test/1"]["txt"].decode().splitlines()[0] == "What is thing 0 of image 1?"


def test_the_answers_of_a_vocabulary_are_normalised_counted_and_in_order_of_appearance(
    build, tmp_path
):
    raw = tmp_path / "raw"
    given = ["Two.", "a dog", "no", "two", "dog", "the dog", "2", "No"]
    questions = official.vqa_questions("train2014", images=1, each=len(given))
    annotations = official.vqa_annotations(questions)
    for annotation, answer in zip(annotations["annotations"], given, strict=True):
        annotation["multiple_choice_answer"] = answer
    paths = [
        official.write_json(raw / name, content)
        for name, content in (("q.json", questions), ("a.json", annotations))
    ]
    official.write_image(raw / "COCO_train2014_000000000001.jpg", seed=1)
    files = ["--questions", f"train={paths[0]}", "--annotations", f"train={paths[1]}"]
    build("vqav2", *files, "--images", f"train={raw}", "--min-answers", "3")
    assert answers_in(tmp_path) == ["2", "dog"]
    card = card_of(tmp_path / "out")
    assert card["lists"]["answers.json"]["entries"] == 2
    assert card["inputs"].keys() == {"min_answers", "q.json", "a.json"}


def test_vqav2_can_train_on_val_except_for_some_images(build, tmp_path):
    arguments = official.vqav2(tmp_path / "raw", images=7)
    samples = build(*arguments, "--keep-val", "2", "--min-answers", "1")
    splits = Counter(sample["split"] for sample in samples.values())
    assert splits == {"train": 7 + 5, "val": 2, "test": 7}
    assert all(id.startswith("val/") for id, s in samples.items() if s["split"] == "val")


def test_a_vocabulary_that_is_there_already_can_be_taken(build, tmp_path):
    fixed = official.write_json(tmp_path / "old.json", ["yes", "net", "no"])
    build(*official.vqav2(tmp_path / "raw"), "--answers", str(fixed))
    assert answers_in(tmp_path) == ["yes", "net", "no"]


def test_visual_genome_answers_are_normalised_and_both_image_folders_searched(build, tmp_path):
    path = official.visual_genome(tmp_path / "vg", count=5)
    samples = build("vg-qa", str(path), str(path.parent), "--min-answers", "3", "--val-share", "0")
    assert len(samples) == 5
    assert [qa["answer"] for qa in samples["4"]["qa"]] == ["2", "on wall", "2", "on wall"]
    assert samples["4"]["qa"][1]["question_id"] == 401
    assert samples["4"]["jpg"] == (path.parent / "VG_100K_2" / "4.jpg").read_bytes()
    assert answers_in(tmp_path) == ["2", "on wall"]


def test_coco_in_karpathys_split_trains_on_restval(build, tmp_path):
    path = official.karpathy(tmp_path, "coco", count=6)
    samples = build("coco-captions", str(tmp_path / "images"), "--karpathy", str(path))
    splits = {sample["image_id"]: sample["split"] for sample in samples.values()}
    assert splits == {
        700: "train",
        701: "train",
        702: "val",
        703: "test",
        704: "train",
        705: "train",
    }
    assert samples["test/703"]["captions"]["en"] == [f"A man, number 3.{k}" for k in range(5)]


def test_coco_captions_of_an_image_are_gathered_in_their_order(build, tmp_path):
    files = [
        f"{split}={official.coco_captions(tmp_path, subset, count)}"
        for split, subset, count in (("train", "train2014", 3), ("val", "val2014", 2))
    ]
    samples = build("coco-captions", str(tmp_path), "--captions", *files)
    assert len(samples) == 5
    assert samples["train/3"]["captions"]["en"] == [f"Caption {k} of 3." for k in range(3)]
    assert samples["val/2"]["split"] == "val"


def test_flickr30k(build, tmp_path):
    path = official.karpathy(tmp_path, "flickr30k", count=5)
    samples = build("flickr30k", str(path), str(tmp_path / "images"))
    splits = Counter(sample["split"] for sample in samples.values())
    assert splits == {"train": 3, "val": 1, "test": 1}
    assert len(samples["val/2"]["captions"]["en"]) == 5


def test_nlvr2_stores_a_pair_once_with_all_its_sentences(build, tmp_path):
    files = [f"{s}={official.nlvr2(tmp_path, name)}" for s, name in NLVR2.items()]
    samples = build("nlvr2", str(tmp_path), "--examples", *files)
    assert len(samples) == 9
    sample = samples["train/train-2-1"]
    assert sample["statements"] == [
        {
            "identifier": "train-2-1-0",
            "sentence": "There are 2 dogs, and 0 of them sleep.",
            "label": True,
        },
        {
            "identifier": "train-2-1-2",
            "sentence": "There are 2 dogs, and 2 of them sleep.",
            "label": False,
        },
    ]
    folder = tmp_path / "images" / "train" / "2"
    assert sample["left.png"] == (folder / "train-2-1-img0.png").read_bytes()
    # It is called .png there, but is a JPEG.
    assert sample["right.jpg"] == (folder / "train-2-1-img1.png").read_bytes()
    assert samples["test/test1-1-1"]["split"] == "test"


NLVR2 = {"train": "train", "val": "dev", "test": "test1"}


@pytest.mark.parametrize("splits", [("train", "val"), ("",)])
def test_classes_are_numbered_by_their_names(build, tmp_path, splits):
    root = official.class_folders(tmp_path / "images", splits)
    samples = build("image-folder", str(root))
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["n01", "n02", "n13"]
    labels = Counter((s["split"] if len(splits) > 1 else "", s["cls"]) for s in samples.values())
    numbers = {b"0": 3, b"1": 4, b"2": 2}
    assert labels == {(split, label): n for split in splits for label, n in numbers.items()}
    assert card_of(tmp_path / "out")["splits"]["train"]["captions"] == {}


def test_the_same_command_again_changes_nothing_but_a_lost_vocabulary(build, tmp_path):
    arguments = [*official.vqav2(tmp_path / "raw"), "--min-answers", "1"]
    build(*arguments)
    path = tmp_path / "out" / "answers.json"
    before = path.read_bytes(), (tmp_path / "out" / "card.json").read_bytes()
    path.unlink()
    build(*arguments)
    assert (path.read_bytes(), (tmp_path / "out" / "card.json").read_bytes()) == before
