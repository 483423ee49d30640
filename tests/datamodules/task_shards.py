"""What samples of each task hold, for shards made on the fly."""

import json

from tests.datamodules.conftest import WORDS, png

ANSWERS = ["yes", "no", "red", "two", "green"]


def question(number: int, answers: list[str] | None) -> dict:
    """A question; with one answer, with ten, or without."""
    words = f"{WORDS[number % 7]} {WORDS[number % 5]}"
    qa: dict = {"question": f"is the {words} star", "question_id": 1000 + number}
    if answers is not None:
        qa |= {"answer": answers[0]} | ({"answers": answers} if len(answers) > 1 else {})
    return qa


def vqa_members(number: int, content: dict[str, bytes]) -> dict[str, bytes]:
    """Sample i has i % 4 + 1 questions; every fifth question has no answer that is known."""
    asked = []
    for k in range(number % 4 + 1):
        own = number * 3 + k
        qa = question(own, ["purple"] if own % 5 == 4 else [ANSWERS[own % 5]])
        asked.append(qa | {"question_id": number * 10 + k})
    about = {"id": f"image-{number}", "qa": asked}
    return {"png": content["png"], "json": json.dumps(about).encode()}


def nlvr2_members(number: int, content: dict[str, bytes]) -> dict[str, bytes]:
    """Pair i has i % 3 + 1 sentences, true and false in turn."""
    statements = [
        {
            "identifier": f"dev-{number}-0-{k}",
            "sentence": f"the {WORDS[number % 7]} star is left",
            "label": bool((number + k) % 2),
        }
        for k in range(number % 3 + 1)
    ]
    return {
        "left.png": content["png"],
        "right.png": png(500 + number),
        "json": json.dumps({"statements": statements}).encode(),
    }


def caption_members(number: int, content: dict[str, bytes]) -> dict[str, bytes]:
    """Image i has i % 5 + 1 captions in English and one in German."""
    captions = {
        "en": [f"the {WORDS[(number + k) % 7]} star of the {WORDS[k]} star" for k in range(1, 6)],
        "de": ["ein roter stern"],
    }
    captions["en"] = captions["en"][: number % 5 + 1]
    about = {"image_id": 70 + number, "captions": captions}
    text = "".join(caption + "\n" for caption in captions["en"])
    return {"png": content["png"], "txt": text.encode(), "json": json.dumps(about).encode()}


def class_members(number: int, content: dict[str, bytes]) -> dict[str, bytes]:
    """The class of image i is i % 3."""
    return {"png": content["png"], "cls": str(number % 3).encode()}
