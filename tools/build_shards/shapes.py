"""The shapes corpus: pictures, captions, questions and scene graphs, made from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random

from tools.build_shards.answers import ANSWERS
from tools.build_shards.errors import InputError
from tools.build_shards.shapes_drawing import png_of
from tools.build_shards.shapes_language import POSSIBLE_ANSWERS, captions_of, questions_of
from tools.build_shards.shapes_scene import draw_scene
from tools.build_shards.source import Item, Source

MIN_SIZE, MAX_SIZE = 16, 512


@contextmanager
def open_shapes(counts: dict[str, int], size: int, seed: int) -> Iterator[Source]:
    """`counts` scenes per split; the same seed gives the same pictures, captions and questions."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"--size {size}: a picture is {MIN_SIZE} to {MAX_SIZE} pixels wide.")
    if min(counts.values()) < 0 or not sum(counts.values()):
        raise InputError(f"the shapes corpus needs at least one sample, not {counts}.")
    items = []
    for split, count in counts.items():
        for number in range(count):
            random = Random(f"{seed} {split} {number}")
            scene = draw_scene(random, split)
            item = Item(
                id=f"{split}/{number:06d}",
                split=split,
                captions={"en": tuple(captions_of(scene, random))},
                read=partial(png_of, scene, size),
                where=f"scene {split}/{number:06d}",
                size=3 * size * size,
                qa=tuple(questions_of(scene, random)),
                extra={"scene": scene.as_json()},
            )
            items.append(item)
    inputs = {**counts, "size": size, "seed": seed}
    yield Source("shapes", tuple(items), inputs, {ANSWERS: POSSIBLE_ANSWERS})
