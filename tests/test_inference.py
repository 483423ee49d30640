"""Single images and texts get what an evaluation of their shard gives, to the digit."""

import io
import re
import struct
from collections.abc import Callable
from functools import cache
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

import mhmoe_mm
from mhmoe_mm import inference
from mhmoe_mm.inference import METHODS, Model
from tests.trained import CLASSES, Trained

Make = Callable[[str], Trained]
RED = Image.new("RGB", (23, 31), (200, 30, 10))


@pytest.fixture(scope="module")
def model(trained: Make) -> Callable[[str], Model]:
    """model(name) -> the loaded model."""
    return cache(lambda name: mhmoe_mm.load(trained(name).checkpoint))


def predicted(made: Trained):
    """(batch, what the task predicts of it) of an evaluation."""
    task = made.task().eval()
    with torch.no_grad():
        return [(batch, task.predict(batch)) for batch in made.batches()]


def questions_of(made: Trained, batch) -> list[str]:
    asked = chain.from_iterable(made.about(key)["qa"] for key in made.samples)
    text = {qa["question_id"]: qa["question"] for qa in asked}
    return [text[number] for number in batch.question_id]


def test_answers_and_their_scores_are_those_of_an_evaluation(trained, model):
    made, asked, task = trained("vqa"), model("vqa"), trained("vqa").task().eval()
    for batch, rows in predicted(made):
        images, questions = made.images(batch), questions_of(made, batch)
        assert asked.answer(images, questions) == [row["answer"] for row in rows]
        with torch.no_grad():
            best = task.scores(batch)[0].sigmoid().topk(4)
        ranked = asked.answer(images, questions, top=4)
        assert [[score for _, score in row] for row in ranked] == best.values.tolist()
        names = [[task.answers[i] for i in row] for row in best.indices.tolist()]
        assert [[name for name, _ in row] for row in ranked] == names


def test_vectors_and_their_similarity_are_those_of_an_evaluation(trained, model):
    made, asked = trained("retrieval"), model("retrieval")
    captions = [line for s in made.samples.values() for line in s["txt"].decode().splitlines()]
    seen = 0
    for batch, rows in predicted(made):
        texts, seen = captions[seen : seen + len(rows)], seen + len(rows)
        image, text = (torch.stack([row[side] for row in rows]) for side in ("image", "text"))
        images = made.images(batch)
        assert torch.equal(asked.embed_image(images), image)
        assert torch.equal(asked.embed_text(texts), text)
        assert torch.equal(asked.score(images, texts), image @ text.T)
        expected = (made.task().logit_scale.exp() * image @ text.T).softmax(dim=1)
        torch.testing.assert_close(asked.probabilities(images, texts), expected.detach())
    assert seen == len(captions)


def test_captions_are_those_of_an_evaluation(trained, model):
    for batch, rows in predicted(trained("captioning")):
        found = model("captioning").caption(trained("captioning").images(batch))
        assert found == [row["caption"] for row in rows]


def test_classes_are_those_of_an_evaluation_by_name(trained, model):
    for batch, rows in predicted(trained("classification")):
        images = trained("classification").images(batch)
        assert model("classification").classify(images) == [CLASSES[row["class"]] for row in rows]
        for ranked in model("classification").classify(images, top=3):
            assert {name for name, _ in ranked} == set(CLASSES)
            assert sum(share for _, share in ranked) == pytest.approx(1)


def test_truths_are_those_of_an_evaluation(trained, model):
    made = trained("nlvr2")
    told = chain.from_iterable(made.about(key)["statements"] for key in made.samples)
    text = {one["identifier"]: one["sentence"] for one in told}
    for batch, rows in predicted(made):
        sides = [made.images(batch, side) for side in ("left.", "right.")]
        found = model("nlvr2").is_true(*sides, [text[name] for name in batch.identifier])
        assert [str(true) for true in found] == [row["label"] for row in rows]


def test_one_row_and_many_agree(trained, model, monkeypatch):
    batch = trained("retrieval").batches()[0]
    images, texts = trained("retrieval").images(batch), ["a red star", "the", "of " * 20]
    asked = model("retrieval")
    for embed, given in ((asked.embed_image, images), (asked.embed_text, texts)):
        together = embed(given)
        torch.testing.assert_close(torch.cat([embed(one) for one in given]), together)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(3))
        monkeypatch.setattr(inference, "AT_A_TIME", 2)
        torch.testing.assert_close(embed(given), together)
        monkeypatch.undo()
    for name, method in (("captioning", "caption"), ("classification", "classify")):
        ask = getattr(model(name), method)
        assert [ask(image) for image in images] == ask(images)


def test_one_image_takes_several_questions_and_one_question_several_images(model):
    asked, blue = model("vqa"), Image.new("RGB", (40, 7), "blue")
    questions = ["is the red star left", "is the a square"]
    assert asked.answer(RED, questions) == [asked.answer(RED, one) for one in questions]
    both = asked.answer([RED, blue], questions[0])
    assert both == [asked.answer(image, questions[0]) for image in (RED, blue)]
    (name, score), _ = asked.answer(RED, questions[0], top=2)
    assert name == asked.answer(RED, questions[0])
    assert 0 < score < 1


def test_an_image_is_the_same_in_every_form(model, tmp_path):
    noise = np.random.default_rng(5).integers(0, 256, (29, 37, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    forms = [
        tmp_path / "noise.png",
        str(tmp_path / "noise.png"),
        Image.fromarray(noise),
        Image.open(tmp_path / "noise.png"),
        noise,
        noise.transpose(2, 0, 1),
        torch.from_numpy(noise),
        torch.from_numpy(noise).permute(2, 0, 1).contiguous(),
        noise[::-1][::-1],
    ]
    vectors = model("retrieval").embed_image(forms)
    # Not to the last bit: with several threads a row's place in its batch matters there.
    torch.testing.assert_close(vectors, vectors[:1].expand_as(vectors), atol=1e-5, rtol=0)


def test_what_is_transparent_is_white(model):
    clear = Image.new("RGBA", (9, 9), (3, 200, 7, 0))
    white = Image.new("RGB", (9, 9), "white")
    vectors = model("retrieval").embed_image([clear, white])
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-5, rtol=0)
    grey = model("retrieval").embed_image(Image.new("RGB", (9, 9), "grey"))[0]
    assert (vectors[1] - grey).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["vqa", "retrieval", "captioning", "classification", "nlvr2"])
def test_what_a_model_cannot_do_is_refused_with_what_it_can(model, name):
    asked = model(name)
    own = METHODS[type(asked.task)]
    given = {"score": 2, "probabilities": 2, "answer": 2, "is_true": 3}
    for method in chain.from_iterable(METHODS.values()):
        if method not in own:
            why = f"the task {type(asked.task).__name__}, which has {', '.join(own)} but not "
            with pytest.raises(ValueError, match=re.escape(why + method)):
                getattr(asked, method)(*["a"] * given.get(method, 1))


def test_a_model_says_what_it_is(trained, model):
    for name, more in {"retrieval": ", texts up to 9 tokens", "classification": ""}.items():
        task, source = type(model(name).task), trained(name).checkpoint
        methods = ", ".join(METHODS[task])
        said = f"Model({task.__name__} from {source} on cpu: {methods}; images 16 x 16{more})"
        assert repr(model(name)) == said


def huge() -> bytes:
    """The header of a PNG of 9,000 x 9,000 pixels, which are not there."""
    png = io.BytesIO()
    Image.new("L", (1, 1)).save(png, "PNG")
    return png.getvalue()[:16] + struct.pack(">II", 9000, 9000) + png.getvalue()[24:]


def deep() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000).save(stream, "PNG")
    return stream.getvalue()


FILES = {
    "cut.png": b"\x89PNG\r\n\x1a\n", "notes.txt": b"hello", "deep.png": deep(), "empty": b"",
    "huge.png": huge(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("none.png", "none.png cannot be read: No such file"),
        (".", "cannot be read: Is a directory"),
        ("a\0b.png", "cannot be read: embedded null byte"),
        ("https://example.org/a.png", r"download https://example.org/a.png and name the file"),
        ("cut.png", "cut.png cannot be used: it ends within its header"),
        ("empty", "empty cannot be used: it is neither JPEG, PNG nor WebP"),
        ("notes.txt", "notes.txt cannot be used: it is neither JPEG, PNG nor WebP"),
        ("deep.png", "16 bits a channel"),
        ("huge.png", "The image huge.png has 9000 x 9000 = 81000000 pixels; 1 to 50000000 are al"),
        (iter(["a.png"]), "several are a list of them.*, not list_iterator"),
        ([["a.png"]], "several are a list of them.*, not list"),
        (Image.new("F", (3, 3)), "mode F, more than 8 bits a channel"),
        (Image.new("I;16", (3, 3)), "mode I;16, more than 8 bits a channel"),
        (np.zeros((5, 5, 3)), "Pixels are uint8, from 0 to 255, not float64"),
        (torch.zeros(3, 5, 5), r"not torch\.float32"),
        (np.zeros((5, 7), np.uint8), r"\(height, width, 3\), not \(5, 7\): make a PIL image of it"),
        (np.zeros((5, 7, 4), np.uint8), r"not \(5, 7, 4\): make a PIL image of it"),
        (np.zeros((2, 5, 7, 3), np.uint8), r"not \(2, 5, 7, 3\): make a list of it"),
        (torch.zeros(3, 0, 7, dtype=torch.uint8), "7 x 0 = 0 pixels"),
        (torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 9000, 9000), "81000000 pixels"),
        (7, "not int"),
        (None, "not NoneType"),
        ([], "There is no image"),
    ],
)
def test_what_is_no_image_is_refused(model, image, why, tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=why):
        model("retrieval").embed_image(image)


def test_what_does_not_fit_together_is_refused(model):
    with pytest.raises(ValueError, match="a str or a list of them, not int"):
        model("retrieval").embed_text(["a", 7])
    with pytest.raises(ValueError, match="There is no text"):
        model("retrieval").embed_text([])
    with pytest.raises(ValueError, match="A question is a str or a list of them, not NoneType"):
        model("vqa").answer(RED, None)
    with pytest.raises(ValueError, match="of one length, not 2 of image and 3 of question"):
        model("vqa").answer([RED] * 2, ["a"] * 3)
    for top in (0, 6, "3", 2.0, True):
        with pytest.raises(ValueError, match=f"top is a whole number from 1 to 5, got {top!r}"):
            model("vqa").answer(RED, "a", top=top)
