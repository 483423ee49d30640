"""The shapes corpus: what is said and asked is true of the scene, and the picture shows it.

Captions and questions are read back by a small parser and compared with the scene graph.
"""

import io
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from tests.tools.making import build_shapes, samples_in, tree
from tools.build_shards.shapes_drawing import INK, PAPER
from tools.build_shards.shapes_language import NUMBERS, PLURALS, VOCABULARY
from tools.build_shards.shapes_scene import PLACES, RADII

SIZE = 32
OBJECT = re.compile(
    rf"(?:an?|the) (?:({'|'.join(RADII)}) )?({'|'.join(INK)}) ({'|'.join(PLURALS)})\b"
)
RELATION = re.compile(r"\b(left of|right of|above|below)\b")
PLACE = re.compile("|".join(PLACES))
GROUND = re.compile(rf"({'|'.join(PAPER)}) background")
COUNT = re.compile(rf"\b({'|'.join(NUMBERS)}) shapes?\b")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes")
    assert build_shapes(out, "--train", "701", "--val", "101", "--test", "101") == 0
    return samples_in(out)


def objects_named(text: str) -> list[tuple]:
    """(size or None, colour, shape) of every object that a text names."""
    return [tuple(part or None for part in match) for match in OBJECT.findall(text)]


def fits(thing: dict, named: tuple) -> bool:
    size, color, shape = named
    return size in (None, thing["size"]) and (color, shape) == (thing["color"], thing["shape"])


def holds(relation: str, a: dict, b: dict) -> bool:
    """By the quarters: objects in one row or column are not told apart by their jitter."""
    axis = 0 if relation in ("left of", "right of") else 1
    step = PLACES[b["place"]][axis] - PLACES[a["place"]][axis]
    return step > 0 if relation in ("left of", "above") else step < 0


def find(things: list[dict], named: tuple) -> dict:
    (thing,) = [thing for thing in things if fits(thing, named)]
    return thing


def test_captions_say_only_what_is_true_of_the_scene(samples):
    kinds: Counter[str] = Counter()
    for sample in samples:
        things = sample["scene"]["objects"]
        for caption in sample["captions"]["en"]:
            named = objects_named(caption)
            assert named, caption
            found = [find(things, each) for each in named]
            assert len({thing["color"] for thing in found}) == len(found)
            if relation := RELATION.search(caption):
                kinds["relation"] += 1
                a, b = found
                assert holds(relation[1], a, b), caption
            elif place := PLACE.search(caption):
                kinds["place"] += 1
                assert place[0] == found[0]["place"], caption
            else:
                assert len(found) == len(things), caption
            if ground := GROUND.search(caption):
                kinds["background"] += 1
                assert ground[1] == sample["scene"]["background"]
            if count := COUNT.search(caption):
                kinds["count"] += 1
                assert NUMBERS.index(count[1]) == len(things)
    assert min(kinds[kind] for kind in ("relation", "place", "background", "count")) > 100


def true_answer(question: str, scene: dict) -> str:
    """The answer read off the scene graph."""
    things = scene["objects"]
    named = objects_named(question)
    relation = RELATION.search(question)
    words = question.split()
    if question == "what color is the background":
        return scene["background"]
    if question.startswith("what color is the"):
        (thing,) = [thing for thing in things if thing["shape"] == words[-1]]
        return thing["color"]
    if question.startswith("what shape is"):
        (thing,) = [thing for thing in things if thing["color"] == words[-1]]
        return thing["shape"]
    if question.startswith("what size is"):
        return find(things, named[0])["size"]
    if question.startswith("where is"):
        return find(things, named[0])["place"]
    if question.startswith("how many shapes"):
        return NUMBERS[len(things)]
    if question.startswith("how many"):
        kind = {plural: shape for shape, plural in PLURALS.items()}[words[2]]
        return NUMBERS[sum(thing["shape"] == kind for thing in things)]
    if question.startswith("is there"):
        return "yes" if any(fits(thing, named[0]) for thing in things) else "no"
    assert relation, question
    if question.startswith("which shape is"):
        (thing,) = [t for t in things if holds(relation[1], t, find(things, named[0]))]
        return thing["shape"]
    a, b = (find(things, each) for each in named)
    return "yes" if holds(relation[1], a, b) else "no"


def test_answers_agree_with_the_scene(samples):
    answers = defaultdict(Counter)
    for sample in samples:
        assert sample["qa"]
        for pair in sample["qa"]:
            assert pair["answer"] == true_answer(pair["question"], sample["scene"]), pair
            answers[pair["question"].split()[0] + pair["question"].split()[1]][pair["answer"]] += 1
    assert {"whatcolor", "whatshape", "whatsize", "whereis", "howmany", "isthere", "isthe"} < set(
        answers
    )
    for kind in ("isthere", "isthe"):
        share = answers[kind]["yes"] / answers[kind].total()
        assert 0.4 < share < 0.6, "a yes-or-no question must not be answerable without the picture"


def test_relations_of_the_graph_are_complete(samples):
    for sample in samples:
        things = sample["scene"]["objects"]
        expected = {
            (a, relation, b)
            for a in range(len(things))
            for b in range(len(things))
            for relation in ("left of", "right of", "above", "below")
            if a != b and holds(relation, things[a], things[b])
        }
        assert {tuple(relation) for relation in sample["scene"]["relations"]} == expected


def test_the_picture_shows_the_scene(samples):
    for sample in samples[:200]:
        pixel = np.asarray(Image.open(io.BytesIO(sample["png"])).convert("RGB")).astype(int)
        assert pixel.shape == (SIZE, SIZE, 3)
        scene = sample["scene"]
        paper = (pixel == PAPER[scene["background"]]).all(axis=2)
        assert paper.mean() > 0.3
        inked = np.zeros_like(paper)
        for thing in scene["objects"]:
            ink = (abs(pixel - INK[thing["color"]]) < 3).all(axis=2)
            rows, columns = ink.nonzero()
            centre = ((columns + 0.5).mean() / SIZE, (rows + 0.5).mean() / SIZE)
            assert centre == pytest.approx(thing["center"], abs=1.5 / SIZE)
            left, top = (round((at - 0.25) * SIZE) for at in PLACES[thing["place"]])
            box = paper[top : top + SIZE // 2, left : left + SIZE // 2]
            reach = max(np.ptp(side) for side in (~box).nonzero()) / SIZE / 2
            assert (reach > 0.148) == (thing["size"] == "large"), thing
            inked |= ink
        assert not (paper & inked).any()


def test_most_scenes_are_small_and_every_word_is_in_use(samples):
    count = Counter(len(sample["scene"]["objects"]) for sample in samples)
    assert set(count) == {1, 2, 3, 4}
    assert count[1] + count[2] > 0.75 * len(samples)
    texts = [text for sample in samples for text in sample["captions"]["en"]]
    texts += [f"{pair['question']} {pair['answer']}" for s in samples for pair in s["qa"]]
    words = {word for text in texts for word in text.split()}
    assert words == VOCABULARY
    assert len(VOCABULARY) < 100


def described(sample: dict) -> tuple:
    """A scene without its jitter."""
    things = sample["scene"]["objects"]
    kinds = sorted((t["shape"], t["color"], t["size"], t["place"]) for t in things)
    return (sample["scene"]["background"], *kinds)


def test_no_scene_is_in_two_splits_under_any_seeds(samples, tmp_path):
    assert (
        build_shapes(tmp_path, "--train", "307", "--val", "97", "--test", "97", "--seed", "5") == 0
    )
    scenes = defaultdict(set)
    for sample in [*samples, *samples_in(tmp_path)]:
        scenes[sample["split"]].add(described(sample))
    assert not scenes["train"] & scenes["val"]
    assert not scenes["train"] & scenes["test"]
    assert not scenes["val"] & scenes["test"]


def test_seeds_give_other_scenes(tmp_path):
    for seed in ("0", "1"):
        build_shapes(tmp_path / seed, "--train", "29", "--val", "0", "--test", "0", "--seed", seed)
    one, two = ({described(s) for s in samples_in(tmp_path / seed)} for seed in ("0", "1"))
    assert len(one & two) < 5
    pictures = [{s["png"] for s in samples_in(tmp_path / seed)} for seed in ("0", "1")]
    assert not pictures[0] & pictures[1]


def test_more_scenes_begin_with_the_same_ones(tmp_path):
    for name in ("11", "17"):
        build_shapes(tmp_path / name, "--train", name, "--val", "0", "--test", "0")
    few, many = ({s["id"]: s for s in samples_in(tmp_path / name)} for name in ("11", "17"))
    assert few.keys() < many.keys()
    assert all(few[id]["json"] == many[id]["json"] for id in few)
    assert tree(tmp_path / "11") != tree(tmp_path / "17")
