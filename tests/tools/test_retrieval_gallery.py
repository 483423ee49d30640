"""The gallery shows what an evaluation counts, marks the right ones, and cuts nothing off."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import mhmoe_mm
from datamodules.decoders import Limits
from datamodules.reading import Samples
from tests.datamodules.conftest import png, write_tar
from tests.trained import Trained
from tools.gallery_sheet import CELL, Cell, Section, draw, letters_lacking, wrapped
from tools.retrieval_gallery import (
    TOP,
    Collection,
    chosen,
    collect,
    find,
    images_of_texts,
    main,
    texts_of_images,
)

HARD = [
    "Donaudampfschifffahrtsgesellschaftskapitän " * 9,
    "WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW " * 7,
    "ein großer Käse, übel; l'œuvre d'un garçon naïf; ¿dónde está el niño?",
    r"$5 and $x_2$ \frac{1}{2} 100 % _ {",
]


@pytest.fixture(scope="module")
def made(trained: Callable[[str], Trained]) -> Trained:
    return trained("retrieval")


def shards(made: Trained) -> Path:
    return made.moved.parent / "shards"


def command(made: Trained, out: Path, *options: str) -> list[str]:
    return ["--ckpt", str(made.run), "--shards", str(shards(made)), "--out", str(out), *options]


@pytest.fixture(scope="module")
def collection(made: Trained) -> Collection:
    samples = Samples([str(shards(made) / "00000.tar")], Limits(), Path("none"))
    return collect(mhmoe_mm.load(made.checkpoint), samples, None)


def test_the_recalls_are_those_of_an_evaluation(made, tmp_path, capsys):
    assert main(command(made, tmp_path / "a.png", "--queries", "7")) == 0
    task = made.task().eval()
    batches = made.batches()
    with torch.no_grad():
        for batch in batches:
            task.evaluate(batch)
    found = task.recall.compute()
    said = capsys.readouterr().out
    assert f"7 images and {sum(len(batch.key) for batch in batches)} texts of " in said
    for direction in ("text to image", "image to text"):
        name = direction.replace(" ", "_")
        at_1, at_5 = (found[f"{name}_recall_at_{k}"] for k in (1, 5))
        assert f"{direction}: recall@1 {at_1:.1%}, recall@5 {at_5:.1%}" in said


def test_the_same_seed_makes_the_same_picture_and_another_one_another(made, tmp_path):
    pictures = []
    for name, seed in {"a": "3", "b": "3", "c": "5"}.items():
        path = tmp_path / f"{name}.png"
        assert main(command(made, path, "--queries", "2", "--seed", seed)) == 0
        pictures.append(path.read_bytes())
        with Image.open(path) as image:
            assert min(image.size) > 1000
    assert pictures[0] == pictures[1] != pictures[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_are_found_as_by_sorting_all(seed):
    draw_ = torch.Generator().manual_seed(seed)
    query, candidate = (torch.randn(*size, generator=draw_) for size in ((7,), (13, 7)))
    right = torch.zeros(13, dtype=torch.bool)
    right[torch.randperm(13, generator=draw_)[:2]] = True
    found = find(query, candidate, right)
    scores = [
        sum(a * b for a, b in zip(query.tolist(), c, strict=True)) for c in candidate.tolist()
    ]
    order = sorted(range(13), key=lambda i: -scores[i])
    assert found.best == order[:TOP]
    assert found.score == pytest.approx(scores, abs=1e-5)
    assert found.rank == 1 + min(order.index(i) for i in right.nonzero()[:, 0].tolist())
    assert found.first == order[found.rank - 1]


def test_ties_count_against_the_query():
    right = torch.tensor([True, False, False, False, False, False, False])
    found = find(torch.ones(3), torch.ones(7, 3), right)
    assert (found.rank, found.first, found.best) == (7, 0, [1, 2, 3, 4, 5])


def test_right_answers_are_marked_and_those_that_are_missed_stand_at_the_end(collection):
    numbers = list(range(7))
    both = {
        "image": images_of_texts(collection, numbers, seed=0),
        "text": texts_of_images(collection, numbers),
    }
    missed = 0
    for kind, section in both.items():
        for number, (query, *cells, end) in zip(numbers, section.rows, strict=True):
            assert query is not None
            assert query.query
            assert not query.right
            its = (collection.text_image == number).nonzero()[:, 0].tolist()
            own = {collection.texts[text] for text in its}
            if kind == "image":
                assert query.content in own
                picture = collection.samples[number].image().permute(1, 2, 0).numpy()
                expected = [np.array_equal(cell.content, picture) for cell in cells]
                assert [cell.right for cell in cells] == expected
            else:
                assert all(cell.content in own for cell in cells if cell.right)
            scores = [float(cell.label.split()[-1]) for cell in cells]
            assert scores == sorted(scores, reverse=True)
            assert all(("✓ right" in cell.label) == cell.right for cell in cells)
            assert (end is None) == any(cell.right for cell in cells)
            if end is not None:
                missed += 1
                assert end.right
                rank = int(end.label.split()[2])
                assert rank > TOP
                assert float(end.label.split()[3]) <= scores[-1]
    assert missed > 0


def test_fewer_than_five_images_leave_places_empty(made, tmp_path):
    few = {f"{i:03d}": {"png": png(i), "txt": b"a star\n"} for i in range(3)}
    write_tar(tmp_path / "few/00000.tar", few)
    samples = Samples([str(tmp_path / "few/00000.tar")], Limits(), Path("none"))
    collection = collect(mhmoe_mm.load(made.checkpoint), samples, None)
    for row in images_of_texts(collection, [0, 2], 0).rows:
        assert [cell is None for cell in row] == [False] * 4 + [True] * 3
    options = ["--ckpt", str(made.run), "--shards", str(tmp_path / "few")]
    assert main([*options, "--out", str(tmp_path / "few.png"), "--queries", "3"]) == 0


def test_nothing_is_cut_off_and_nothing_overlaps():
    picture = np.zeros((5, 90, 3), np.uint8)
    row: list[Cell | None] = [Cell(text, "✓ rank 123456  -0.123", right=True) for text in HARD]
    columns = ["query", "right one, if missed", "3", "4", "5"]
    sections = [Section("A heading", columns, [[*row, Cell(picture, "0.1")], row])] * 2
    figure = draw("runs/" + "long_name/" * 30 + "last.ckpt", [HARD[2] * 3, "a fact"], sections)
    figure.canvas.draw()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    boxes = {id(text): text.get_window_extent() for text in texts}
    page = figure.bbox
    for text in texts:
        box = boxes[id(text)]
        assert page.x0 < box.x0 < box.x1 < page.x1, text.get_text()
        assert page.y0 < box.y0 < box.y1 < page.y1, text.get_text()
        others = [boxes[id(other)] for other in texts if other is not text]
        assert not any(box.overlaps(other) for other in others), text.get_text()
    cells = [axis.get_window_extent() for axis in figure.axes]
    inside = [
        [cell for cell in cells if cell.overlaps(box)]
        for text in texts
        for box in [boxes[id(text)]]
    ]
    for text, around in zip(texts, inside, strict=True):
        assert len(around) <= 1
        for cell in around:
            box = boxes[id(text)]
            assert cell.x0 < box.x0 < box.x1 < cell.x1, text.get_text()
            assert cell.y0 < box.y0 < box.y1 < cell.y1, text.get_text()
    assert sum(bool(around) for around in inside) == 2 * 2 * len(HARD)


def test_formulas_in_a_caption_stay_as_they_were_written():
    row: list[Cell | None] = [Cell(HARD[3], "$a$")]
    figure = draw("$x$", ["$y$"], [Section("$z$", ["$c$"], [row])])
    shown = {text.get_text(): text for text in figure.findobj(Text) if isinstance(text, Text)}
    for written in ("$a$", "$x$", "$y$", "$z$", "$c$", wrapped(HARD[3], CELL - 0.26, 9, 9)):
        assert not shown[written].get_parse_math()


@pytest.mark.parametrize("text", HARD)
def test_wrapping_keeps_every_letter_unless_the_room_is_full(text):
    lines = wrapped(text, 1.3, 99, 9).splitlines()
    assert len(lines) > 1
    assert "".join("".join(lines).split()) == "".join(text.split())
    cut = wrapped(text, 1.3, 2, 9).splitlines()
    assert cut[0] == lines[0]
    assert len(cut) == 2
    assert cut[1].endswith(" …")
    assert wrapped("a star", 1.3, 2, 9) == "a star"


def test_the_font_has_the_letters_of_european_languages():
    assert letters_lacking(["äöüßÄÖÜ éèêëàâçîïôûùœæÿ ñáíóú¿¡ ✓ …", *HARD]) == []
    assert letters_lacking(["a 猫 of\t好"]) == ["好", "猫"]


def test_letters_that_the_font_lacks_are_told_in_one_sentence(made, tmp_path, capsys, recwarn):
    write_tar(tmp_path / "00000.tar", {"a": {"png": png(1), "txt": "猫 好\n".encode()}})
    options = ["--ckpt", str(made.run), "--shards", str(tmp_path), "--queries", "0,"]
    assert main([*options, "--out", str(tmp_path / "a.png")]) == 0
    assert "The font lacks 好, 猫: they are drawn as boxes." in capsys.readouterr().err
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_queries_are_a_number_or_numbers():
    drawn = chosen("11", 101, seed=3)
    assert drawn == sorted(set(drawn)) == chosen("11", 101, seed=3) != chosen("11", 101, seed=4)
    assert len(drawn) == 11
    assert set(drawn) <= set(range(101))
    assert chosen("7,3, 3", 11, 0) == [7, 3, 3]
    assert chosen("7,", 11, 0) == [7]
    assert (len(chosen(None, 11, 0)), len(chosen(None, 5, 0))) == (8, 5)
    assert chosen("11", 11, 0) == list(range(11))


def test_captions_in_the_language_that_is_asked_for_are_read(made, tmp_path, capsys):
    options = ("--language", "de", "--queries", "1")
    assert main(command(made, tmp_path / "a.png", *options)) == 0
    assert "7 images and 7 texts (de) of" in capsys.readouterr().out


BAD = {
    "no checkpoint": (["--ckpt", "none.ckpt"], "No such checkpoint: none.ckpt"),
    "no shards": (["--shards", "nowhere"], "No shards match 'nowhere'"),
    "another picture": (["--out", "a.jpg"], "a PNG, so name a .png file"),
    "no folder": (["--out", "nowhere/a.png"], "nowhere, the folder of --out, does not exist"),
    "no such language": (["--language", "xx"], "has no caption in xx; it has: en, de"),
    "no queries": (["--queries", "0"], "--queries 0: there can be 1 to 7 (of 7 images)"),
    "too many queries": (["--queries", "8"], "--queries 8: there can be 1 to 7"),
    "no such image": (["--queries", "2,7"], "--queries 2,7: images have numbers from 0 to 6"),
    "no numbers": (["--queries", "two"], "--queries two: give a number, or numbers of images"),
    "no device": (["--device", "abacus"], "The device abacus cannot be used here"),
    "no plugin": (["--plugin", "no_such"], "The plugin no_such cannot be imported"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_input_is_one_sentence(made, tmp_path, monkeypatch, capsys, fault):
    monkeypatch.chdir(tmp_path)
    options, why = BAD[fault]
    assert main(command(made, Path("a.png"), *options)) == 2
    error = capsys.readouterr().err.splitlines()
    assert why in error[-1]
    assert error[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_task_is_refused(trained, made, tmp_path, capsys):
    options = ["--ckpt", str(trained("vqa").checkpoint)]
    assert main(command(made, tmp_path / "a.png", *options)) == 2
    assert "holds a model of the task VQA: name a checkpoint of Retr" in capsys.readouterr().err


def test_samples_without_captions_or_pictures_are_refused_with_what_would_help(
    made, tmp_path, capsys
):
    usual = {"png": png(1), "txt": b"a star\n", "json": b'{"captions": {"en": ["a star"]}}'}
    for lacking, why in {"txt": "add --language.", "png": "has no image, only"}.items():
        samples = {"a": {name: content for name, content in usual.items() if name != lacking}}
        write_tar(tmp_path / lacking / "00000.tar", samples)
        options = ["--shards", str(tmp_path / lacking), "--queries", "1"]
        assert main(command(made, tmp_path / "a.png", *options)) == 2
        error = capsys.readouterr().err
        assert why in error
        assert ("--language" in error) == (lacking == "txt")


def test_a_model_that_has_diverged_is_refused(made, tmp_path, capsys):
    content = torch.load(made.checkpoint, weights_only=True)
    content["state_dict"]["vision_head.out.weight"].fill_(float("nan"))
    torch.save(content, tmp_path / "diverged.ckpt")
    options = ("--queries", "1", "--ckpt", str(tmp_path / "diverged.ckpt"))
    assert main(command(made, tmp_path / "a.png", *options)) == 2
    assert "hold NaN or infinity" in capsys.readouterr().err
