"""Scenes of the shapes corpus: a few coloured shapes on a plain background, drawn by lot.

A scene has one to four objects, mostly one or two, each in a place of its own: a quarter of the
picture, or the middle when it is alone. Colours are distinct within a scene, so "the red circle"
means one object.

The split that a scene may appear in is a function of the scene alone (its objects, places and
background): no scene of the test split is ever seen in training, not even under another seed.
"""

import hashlib
from dataclasses import asdict, dataclass
from random import Random

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
BACKGROUNDS = ("white", "gray", "cream", "mint")
RADII = {"small": 0.115, "large": 0.2}
PLACES = {
    "top left": (0.25, 0.25),
    "top right": (0.75, 0.25),
    "bottom left": (0.25, 0.75),
    "bottom right": (0.75, 0.75),
    "center": (0.5, 0.5),
}
QUARTERS = tuple(PLACES)[:4]
NUM_OBJECTS = {1: 0.4, 2: 0.45, 3: 0.1, 4: 0.05}
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Shape:
    """One object; `center` (right, down) and `radius` are fractions of the picture's side."""

    shape: str
    color: str
    size: str
    place: str
    center: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Scene:
    background: str
    objects: tuple[Shape, ...]

    def signature(self) -> str:
        """The scene without its jitter: equal for two scenes that the same words describe."""
        words = sorted(f"{o.size} {o.color} {o.shape} {o.place}" for o in self.objects)
        return "; ".join([self.background, *words])

    def as_json(self) -> dict[str, object]:
        """The scene graph: objects, and relations as [index, relation, index]."""
        count = range(len(self.objects))
        relations = [
            [a, relation, b]
            for a in count
            for b in count
            for relation in relations_between(self.objects[a], self.objects[b])
        ]
        objects = [asdict(shape) for shape in self.objects]
        return {"background": self.background, "objects": objects, "relations": relations}


def relations_between(a: Shape, b: Shape) -> list[str]:
    """How `a` stands to `b`, by their places: "left of", "right of", "above", "below"."""
    (ax, ay), (bx, by) = PLACES[a.place], PLACES[b.place]
    holds = {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}
    return [relation for relation, true in holds.items() if true]


def split_of(scene: Scene) -> str:
    """The only split that this scene may appear in."""
    position = hashlib.sha256(scene.signature().encode()).digest()[0] / 256
    if position < SHARES["train"]:
        return "train"
    return "val" if position < SHARES["train"] + SHARES["val"] else "test"


def draw_scene(random: Random, split: str) -> Scene:
    """A random scene of a split."""
    while True:
        scene = _any_scene(random)
        if split_of(scene) == split:
            return scene


def _any_scene(random: Random) -> Scene:
    (count,) = random.choices(list(NUM_OBJECTS), weights=list(NUM_OBJECTS.values()))
    if count == 1:
        places = [random.choice(list(PLACES))]
    else:  # in reading order, so that a listing of the objects follows from the picture
        places = sorted(random.sample(QUARTERS, count), key=QUARTERS.index)
    colors = random.sample(COLORS, count)
    objects = tuple(
        _object(random, place, color) for place, color in zip(places, colors, strict=True)
    )
    return Scene(random.choice(BACKGROUNDS), objects)


def _object(random: Random, place: str, color: str) -> Shape:
    size = random.choice(list(RADII))
    radius = RADII[size] * random.uniform(0.92, 1.08)
    # Objects stay inside their quarter of the picture, so they never touch.
    jitter = 0.24 - radius
    x, y = PLACES[place]
    center = (
        round(x + random.uniform(-jitter, jitter), 4),
        round(y + random.uniform(-jitter, jitter), 4),
    )
    return Shape(random.choice(SHAPES), color, size, place, center, round(radius, 4))
