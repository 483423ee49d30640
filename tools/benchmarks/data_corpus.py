"""Images and captions to time data pipelines on, made on the spot from a seed.

An image is a window of noise whose strength falls with its frequency, as that of photographs does,
in JPEG of quality 90: 256 x 256 pixels take about 24 KB. Captions are 8 to 14 words out of 200.
"""

import io
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tools.build_shards.errors import Problems
from tools.build_shards.images import prepared
from tools.build_shards.plan import make_plan
from tools.build_shards.source import Item, Source
from tools.build_shards.writer import write_shard
from tools.train_tokenizer.kinds import Kind, train

QUALITY = 90
SHARDS = 8
FALL = 1.3
"""The amplitude of a frequency f of the noise is f to the minus this."""


class Corpus(NamedTuple):
    """Where the same samples lie, as each pipeline reads them."""

    shards: list[str]
    tokenizer: str
    samples: list[tuple[bytes, str]]
    """(JPEG, caption) of each, in the order in which they were made."""
    side: tuple[int, int]
    """Width and height, in pixels."""


def make_corpus(folder: Path, count: int, width: int, height: int, seed: int = 0) -> Corpus:
    """`count` samples as eight shards with a tokenizer in `folder`."""
    rng = np.random.default_rng(seed)
    field = noise(rng, 4 * max(width, height))
    words = [_word(rng) for _ in range(200)]
    samples = [(photo(rng, field, width, height), _caption(rng, words)) for _ in range(count)]
    items = tuple(
        Item(
            id=f"{number:06d}",
            split="train",
            captions={"en": (caption,)},
            read=partial(bytes, image),
            where=f"image {number}",
            size=len(image),
        )
        for number, (image, caption) in enumerate(samples)
    )
    source = Source("noise", items, {"seed": seed})
    shares = {"val": 0.0, "test": 0.0}
    plan = make_plan(source, str(-(-count // SHARDS)), seed, shares, None)
    prepare = partial(prepared, max_pixels=width * height, image_size=None)
    for shard in plan.shards:
        record = folder / f"{shard.split}-{shard.number}.json"
        (folder / shard.split).mkdir(parents=True, exist_ok=True)
        write_shard(
            shard, folder / shard.split, record, prepare, Problems(skip=False), lambda: None
        )
    tokenizer = folder / "tokenizer.json"
    train((caption for _, caption in samples), Kind(vocab_size=1000)).save(str(tokenizer))
    shards = [str(path) for path in sorted((folder / "train").glob("*.tar"))]
    return Corpus(shards, str(tokenizer), samples, (width, height))


def noise(rng: np.random.Generator, side: int) -> np.ndarray:
    """float32 (side side 3), of mean 0 and deviation 1 a channel; channels have much in common."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    planes = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((side, side))) / frequency**FALL)
        for _ in range(4)
    ]
    common, *own = (plane / plane.std() for plane in planes)
    return np.stack([(common + 0.3 * plane) / 1.3 for plane in own], axis=-1).astype(np.float32)


def photo(rng: np.random.Generator, field: np.ndarray, width: int, height: int) -> bytes:
    """A JPEG of a window of the noise, with a contrast and a brightness of its own."""
    top, left = rng.integers(0, len(field) - height + 1), rng.integers(0, len(field) - width + 1)
    window = field[top : top + height, left : left + width]
    pixels = np.clip(window * rng.uniform(35, 75) + rng.uniform(90, 160), 0, 255)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _word(rng: np.random.Generator) -> str:
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(3, 10))
    return "".join(letters)


def _caption(rng: np.random.Generator, words: list[str]) -> str:
    return " ".join(rng.choice(words, rng.integers(8, 15)))
