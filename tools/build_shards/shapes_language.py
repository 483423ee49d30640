"""What is said and asked about a scene: always true of it, in fewer than a hundred words."""

from random import Random

from tools.build_shards.shapes_scene import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    RADII,
    SHAPES,
    Scene,
    Shape,
    relations_between,
)

PLURALS = {shape: f"{shape}es" if shape.endswith("s") else f"{shape}s" for shape in SHAPES}
NUMBERS = ("zero", "one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
MAX_QUESTIONS = 6
POSSIBLE_ANSWERS = ("yes", "no", *NUMBERS, *RADII, *SHAPES, *COLORS, *BACKGROUNDS, *PLACES)
GRAMMAR = (
    "a an and are background color how in is many of on picture shape shapes shows size "
    "the there what where which with yes no"
)
VOCABULARY = frozenset(
    " ".join(
        [*SHAPES, *PLURALS.values(), *COLORS, *BACKGROUNDS, *RADII, *PLACES, *NUMBERS, *RELATIONS]
    ).split()
    + GRAMMAR.split()
)

Question = dict[str, str]


def captions_of(scene: Scene, random: Random) -> list[str]:
    """Four captions: all objects, how they lie, a short listing, a count with the background."""
    ground = f"on a {scene.background} background"
    full = _listing([_named(shape) for shape in scene.objects])
    short = _listing([f"{shape.color} {shape.shape}" for shape in scene.objects])
    number = NUMBERS[len(scene.objects)]
    noun = "shape" if len(scene.objects) == 1 else "shapes"
    verb = "is" if len(scene.objects) == 1 else "are"
    return [
        random.choice([f"{full} {ground}", f"a picture of {full}", f"there {verb} {full}"]),
        _arrangement(scene, random),
        random.choice([short, f"the picture shows {short}", f"{short} {ground}"]),
        random.choice([f"{number} {noun} {ground} with {short}", f"{number} {noun} with {full}"]),
    ]


def questions_of(scene: Scene, random: Random) -> list[Question]:
    """At most six questions with answers, one of a kind, in random order."""
    some = random.choice(scene.objects)
    asked = [
        _question(f"what shape is {some.color}", some.shape),
        _question(f"what size is the {some.color} {some.shape}", some.size),
        _question(f"where is the {some.color} {some.shape}", some.place),
        _question("what color is the background", scene.background),
        _count(scene, random),
        _existence(scene, random),
    ]
    alone = [o for o in scene.objects if _how_many(scene, o.shape) == 1]
    if alone:
        only = random.choice(alone)
        asked.append(_question(f"what color is the {only.shape}", only.color))
    if len(scene.objects) > 1:
        asked.append(_relation(scene, random))
        asked += _which(scene, random)
    random.shuffle(asked)
    return asked[:MAX_QUESTIONS]


def _question(question: str, answer: str) -> Question:
    return {"question": question, "answer": answer}


def _named(shape: Shape) -> str:
    return f"{shape.size} {shape.color} {shape.shape}"


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _listing(names: list[str]) -> str:
    return " and ".join(_with_article(name) for name in names)


def _arrangement(scene: Scene, random: Random) -> str:
    """Where one object lies, or how two of them lie to each other."""
    if len(scene.objects) == 1:
        shape = scene.objects[0]
        named = _with_article(_named(shape))
        return random.choice(
            [f"{named} in the {shape.place}", f"in the {shape.place} there is {named}"]
        )
    a, b = random.sample(scene.objects, 2)
    relation = random.choice(relations_between(a, b))
    sized = random.random() < 0.7
    first, second = (_named(o) if sized else f"{o.color} {o.shape}" for o in (a, b))
    return f"{_with_article(first)} {relation} {_with_article(second)}"


def _how_many(scene: Scene, shape: str) -> int:
    return sum(o.shape == shape for o in scene.objects)


def _count(scene: Scene, random: Random) -> Question:
    if random.random() < 0.5:
        return _question("how many shapes are there", NUMBERS[len(scene.objects)])
    # Half of the kinds asked for are there, else the answer would mostly be zero.
    there = random.random() < 0.5
    shape = random.choice(scene.objects).shape if there else random.choice(SHAPES)
    return _question(f"how many {PLURALS[shape]} are there", NUMBERS[_how_many(scene, shape)])


def _existence(scene: Scene, random: Random) -> Question:
    """Yes and no are equally frequent; a no is near: an object's colour or shape, not both."""
    one = random.choice(scene.objects)
    if random.random() < 0.5:
        return _question(f"is there {_with_article(f'{one.color} {one.shape}')}", "yes")
    there = {(o.color, o.shape) for o in scene.objects}
    near = [(one.color, shape) for shape in SHAPES] + [(color, one.shape) for color in COLORS]
    color, shape = random.choice([pair for pair in near if pair not in there])
    return _question(f"is there {_with_article(f'{color} {shape}')}", "no")


def _relation(scene: Scene, random: Random) -> Question:
    a, b = random.sample(scene.objects, 2)
    holds = relations_between(a, b)
    true = random.random() < 0.5
    relation = random.choice(holds if true else [r for r in RELATIONS if r not in holds])
    question = f"is the {a.color} {a.shape} {relation} the {b.color} {b.shape}"
    return _question(question, "yes" if true else "no")


def _which(scene: Scene, random: Random) -> list[Question]:
    """Which shape lies so to another one, where exactly one does."""
    asked = []
    for b in scene.objects:
        for relation in RELATIONS:
            fitting = [a for a in scene.objects if relation in relations_between(a, b)]
            if len(fitting) == 1:
                question = f"which shape is {relation} the {b.color} {b.shape}"
                asked.append(_question(question, fitting[0].shape))
    return [random.choice(asked)] if asked else []
