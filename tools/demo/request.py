"""What a page asks, read from the body of its request and checked before a model sees it.

{"mode": "answer", "images": ["<base64>"], "text": "what colour is the circle?", "beams": 3}
"""

import base64
import binascii
import json
import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mhmoe_mm.inputs.images import MAX_PIXELS, ImageError, decode_image
from mhmoe_mm.inputs.texts import Texts
from tools.build_shards.errors import some

MOST_LETTERS = 20_000
"""Of all texts of a request."""
MOST_LINES = 200
MOST_BEAMS = 8
FIELDS = {"mode": str, "images": list, "text": str, "beams": int}


class RequestError(ValueError):
    """A request that cannot be answered; one sentence for the person who asked."""


class Request(NamedTuple):
    """A request, its images still encoded."""

    mode: str
    images: list[bytes]
    text: str
    """Without blanks at either end; empty where there is none."""
    beams: int | None


def parsed(body: bytes, most_bytes: int) -> Request:
    """A request from the JSON of its body; images may have so many bytes each."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("The request is not JSON.") from error
    if not isinstance(given, dict):
        raise RequestError("The request is not a JSON object.")
    for name, value in given.items():
        if name not in FIELDS:
            raise RequestError(f"The request has an unknown field {name[:40]!r}.")
        if type(value) is not FIELDS[name]:
            raise RequestError(f"The field {name!r} of the request has the wrong type.")
    if "mode" not in given:
        raise RequestError("The request does not say what is asked: it has no field 'mode'.")
    beams = given.get("beams")
    if beams is not None and not 1 <= beams <= MOST_BEAMS:
        raise RequestError(f"There can be 1 to {MOST_BEAMS} beams, not {beams}.")
    images = [_bytes(image, most_bytes) for image in given.get("images", [])]
    return Request(given["mode"], images, _text(given.get("text", "")), beams)


def _bytes(image: Any, most_bytes: int) -> bytes:
    try:
        data = base64.b64decode(image, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise RequestError("An image of the request is not base64.") from error
    if len(data) > most_bytes:
        raise RequestError(f"The image has {megabytes(len(data))}; {allowed(most_bytes)}.")
    return data


def _text(text: str) -> str:
    if len(text) > MOST_LETTERS:
        raise RequestError(f"The text has {len(text):,} letters; {MOST_LETTERS:,} are allowed.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError("The text holds half a letter: it is not Unicode.") from error
    return text.strip()


def pixels_of(data: bytes) -> Tensor:
    """uint8 (3 height width) of an image file."""
    try:
        return decode_image(np.frombuffer(bytearray(data), dtype=np.uint8))
    except ImageError as error:
        if error.kind == "pixels":
            raise RequestError(
                f"The image has too many pixels: {MAX_PIXELS / 1e6:.0f} million are allowed."
            ) from error
        raise RequestError(f"The image cannot be used: {error}.") from error


def check_text(text: str, texts: Texts, what: str) -> None:
    """Refuse a text that the model would not read whole: an empty one, a longer one than it reads,
    one with words that its vocabulary lacks.
    """
    if not text:
        raise RequestError(f"There is no {what}: type one.")
    ids, ends = texts.tokenizer.encode_whole(text)
    begins = [0, *ends[:-1]]
    unknown = [
        f"“{text[begin:end].strip()}”"
        for token, begin, end in zip(ids, begins, ends, strict=True)
        if token == texts.tokenizer.unk
    ]
    if unknown:
        raise RequestError(f"The model's vocabulary does not have {some(dict.fromkeys(unknown))}.")
    most = texts.max_tokens - 2  # the start and the end are tokens too
    if len(ids) > most:
        raise RequestError(
            f"The {what} has {len(ids)} tokens, and the model reads at most {most}: shorten it."
        )
    if not ids:
        raise RequestError(f"The {what} has nothing that the model reads.")


def lines_of(text: str, what: str) -> list[str]:
    """The lines of a text that are not empty, each once."""
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) > MOST_LINES:
        raise RequestError(f"There are {len(lines)} {what}; at most {MOST_LINES} are compared.")
    return lines


def megabytes(size: int) -> str:
    """Bytes as a person reads them, rounded up."""
    return f"{math.ceil(size / 1e5) / 10:g} MB"


def allowed(most_bytes: int) -> str:
    """The end of a sentence about something that is too large."""
    return f"at most {megabytes(most_bytes)} are taken (--max-upload)"
