"""Faults in official formats: one sentence names the culprit; skipped and counted on demand."""

import json

import pytest

from tests.tools import official
from tests.tools.making import card_of, samples_in
from tests.tools.test_bad_input import refused
from tools.build_shards.cli import main


@pytest.fixture
def raw(tmp_path):
    """VQAv2 with two questions about each of three images in every split."""
    official.vqav2(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.fixture
def build(tmp_path, raw):
    """build(*options) -> exit code, of VQAv2 as it lies in `raw`."""

    def run(*options: str) -> int:
        arguments = ["vqav2", "--min-answers", "1"]
        for name in ("questions", "annotations", "images"):
            arguments.append(f"--{name}")
            for split, subtype in {"train": "train2014", "val": "val2014"}.items():
                version = "v2_OpenEnded_mscoco" if name == "questions" else "v2_mscoco"
                file = subtype if name == "images" else f"{version}_{subtype}_{name}.json"
                arguments.append(f"{split}={raw / file}")
        return main([*arguments, "--out", str(tmp_path / "out"), *options])

    return run


def change(path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "v2_mscoco_train2014_annotations.json"


def edited(field, number, **values):
    return lambda content: content[field][number].update(values)


@pytest.mark.parametrize(
    ("file", "edit", "names"),
    [
        (
            QUESTIONS,
            edited("questions", 3, question_id=1000),
            ["questions[3]", "question id 1000 again"],
        ),
        (QUESTIONS, edited("questions", 3, question=" "), ["2001", "empty question"]),
        (
            QUESTIONS,
            edited("questions", 3, image_id=3),
            ["question 2001", "image 3", "annotation about image 2"],
        ),
        (QUESTIONS, edited("questions", 3, image_id="x"), ["questions[3]", "image_id", "'x'"]),
        (QUESTIONS, edited("questions", 3, question_id=7), ["question 7", "no annotation"]),
        (
            ANNOTATIONS,
            edited("annotations", 4, answers=[{"answer": "net"}] * 9),
            ["annotations[4]", "question 3000", "9 answers instead of 10"],
        ),
        (
            ANNOTATIONS,
            edited("annotations", 4, question_id=1000),
            ["annotations[4]", "question id 1000 again"],
        ),
        (
            ANNOTATIONS,
            lambda content: content["annotations"].pop(4),
            ["question 3000", "no annotation"],
        ),
        (QUESTIONS, lambda content: content["questions"].pop(4), ["3000", "no question"]),
        (QUESTIONS, lambda content: content.pop("questions"), ['no list "questions"']),
    ],
)
def test_a_fault_of_vqav2_is_named(build, raw, tmp_path, capsys, file, edit, names):
    change(raw / file, edit)
    refused(capsys, build(), *names)
    assert not (tmp_path / "out").exists()


def test_a_missing_image_is_named_with_its_questions(build, raw, tmp_path, capsys):
    (raw / "train2014" / "COCO_train2014_000000000002.jpg").unlink()
    refused(capsys, build(), "image 2", "COCO_train2014_000000000002.jpg", "2 questions")
    assert build("--on-error", "skip") == 0
    card = card_of(tmp_path / "out")
    assert [problem["id"] for problem in card["skipped"]] == ["train/2"]
    assert card["splits"]["train"]["questions"] == 4
    assert len(samples_in(tmp_path / "out")) == 5


def test_questions_are_skipped_one_by_one_and_each_is_counted(build, raw, tmp_path):
    change(raw / ANNOTATIONS, edited("annotations", 2, answers=[]))
    change(raw / QUESTIONS, edited("questions", 5, question=""))
    assert build("--on-error", "skip") == 0
    card = card_of(tmp_path / "out")
    assert [problem["id"] for problem in card["skipped"]] == ["2000", "3001"]
    assert card["splits"]["train"]["questions"] == 4


def test_broken_json_is_named_with_line_and_column(build, raw, capsys):
    path = raw / QUESTIONS
    path.write_text('{"questions": [\n {"question_id": 1,,}]}')
    refused(capsys, build(), str(path), "not JSON", "line 2 column 20")


@pytest.mark.parametrize(
    ("option", "names"),
    [
        (["--questions", "dev=q.json"], ["dev=q.json", "train, val or test"]),
        (["--questions", "train=absent.json"], ["absent.json does not exist"]),
        (["--min-answers", "0"], ["--min-answers 0"]),
        (["--min-answers", "13"], ["--min-answers 13 leaves no answer", "'net'", "12 times"]),
        (["--keep-val", "4"], ["--keep-val 4", "3 images"]),
        (["--images", "train=."], ["--images val=DIR is missing"]),
    ],
)
def test_wrong_options_are_told(build, capsys, option, names):
    refused(capsys, build(*option), *names)


def build_in(tmp_path, *arguments: str) -> int:
    return main([*arguments, "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (edited("images", 1, cocoid=700), ["images[1]", "image id 700 again"]),
        (edited("images", 1, split="dev"), ["images[1]", "'dev'", "restval"]),
        (edited("images", 1, sentences=[]), ["image 701", "no caption"]),
        (edited("images", 1, sentences=[{"raw": " "}]), ["image 701", "empty caption"]),
        (edited("images", 1, filename="../x.jpg"), ["unsafe", "../x.jpg"]),
        (edited("images", 1, filename="x.jpg"), ["missing", "val2014/x.jpg or x.jpg"]),
    ],
)
def test_a_fault_of_a_karpathy_file_is_named(tmp_path, capsys, edit, names):
    path = official.karpathy(tmp_path, "coco")
    change(path, edit)
    images = str(tmp_path / "images")
    code = build_in(tmp_path, "coco-captions", images, "--karpathy", str(path))
    refused(capsys, code, "dataset_coco.json", *names)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (edited("images", 2, id=1), ["images[2]", "image id 1 again"]),
        (edited("annotations", 2, id=100), ["annotations[2]", "caption id 100 again"]),
        (edited("annotations", 0, image_id=9), ["image 9", "does not list"]),
        (edited("annotations", 0, image_id=2), ["image 1", "no caption"]),
    ],
)
def test_a_fault_of_cocos_captions_is_named(tmp_path, capsys, edit, names):
    path = official.coco_captions(tmp_path, "train2014")
    change(path, edit)
    code = build_in(tmp_path, "coco-captions", str(tmp_path), "--captions", f"train={path}")
    # An annotation that moves to another image leaves its own without one: several problems.
    refused(capsys, code, "captions_train2014.json")
    options = ["--on-error", "skip", "--out", str(tmp_path / "skipped")]
    main(["coco-captions", str(tmp_path), "--captions", f"train={path}", *options])
    reasons = [problem["reason"] for problem in card_of(tmp_path / "skipped")["skipped"]]
    assert any(all(name in reason for name in names) for reason in reasons)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("{", ["line 7", "not JSON"]),
        ("[]", ["line 7", "not an object"]),
        (official.nlvr2_line("dev", 1, 0), ["dev-1-1-0 again"]),
        (official.nlvr2_line("dev", 9), ["pair dev-9-1", "missing", "dev-9-1-img0.png", "1 sent"]),
        (official.nlvr2_line("dev", 1, 3, "maybe"), ["dev-1-1-3", "'maybe'"]),
        (official.nlvr2_line("dev", 1, 3) | {"sentence": ""}, ["dev-1-1-3", "empty sentence"]),
        (official.nlvr2_line("dev", 1, 3) | {"identifier": "dev-1"}, ["dev-1,", "not split-set"]),
    ],
)
def test_a_fault_of_nlvr2_is_named(tmp_path, capsys, line, names):
    path = official.nlvr2(tmp_path, "dev")
    line = line if isinstance(line, str) else json.dumps(line)
    path.write_text(path.read_text() + line + "\n")
    code = build_in(tmp_path, "nlvr2", str(tmp_path), "--examples", f"val={path}")
    refused(capsys, code, "dev.json", *names)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda content: content[1].update(id=1), ["entry 1", "image id 1 again"]),
        (lambda content: content[1].update(qas=[]), ["image 2", "no question"]),
        (lambda content: content[2]["qas"][1].update(qa_id=300), ["qas[1]", "qa id 300 again"]),
        (lambda content: content[2]["qas"][1].update(answer="The."), ["qas[1]", "empty"]),
        (lambda content: content[2].update(id=77), ["image 77", "VG_100K_2/77.jpg"]),
    ],
)
def test_a_fault_of_visual_genome_is_named(tmp_path, capsys, edit, names):
    path = official.visual_genome(tmp_path)
    change(path, edit)
    refused(capsys, build_in(tmp_path, "vg-qa", str(path), str(tmp_path)), *names)


def test_a_class_that_training_does_not_have_is_named(tmp_path, capsys):
    root = official.class_folders(tmp_path / "images")
    official.write_image(root / "val" / "n99" / "a.jpg", seed=1)
    (root / "train" / "n00").mkdir()
    code = build_in(tmp_path, "image-folder", str(root))
    refused(capsys, code, "n00", "no image", "first of 2")
    assert (
        main(["image-folder", str(root), "--out", str(tmp_path / "o"), "--on-error", "skip"]) == 0
    )
    reasons = [problem["reason"] for problem in card_of(tmp_path / "o")["skipped"]]
    assert any("n99" in reason and "not one of the 4" in reason for reason in reasons)
