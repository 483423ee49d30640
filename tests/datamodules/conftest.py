"""Small shards made on the fly: a tokenizer, images whose colour tells their number, captions."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from datamodules.index import index_path, scan_shard, write_index

WORDS = ["a", "red", "green", "blue", "big", "small", "circle", "square", "star"]
WORDS += ["left", "right", "of", "the", "and", "is", "not"]


def png(number: int, side: int = 20) -> bytes:
    """A PNG whose pixels depend on `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "PNG")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    """An image file as bytes."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def members(number: int) -> dict[str, bytes]:
    """The members of a usual sample: an image, two captions a line, and captions by language."""
    caption = f"{WORDS[number % 7]} {WORDS[number % 11]} {WORDS[number % 13]} star"
    captions = {"en": [caption, "the red star"], "de": ["ein roter stern"]}
    return {
        "png": png(number),
        "txt": f"{caption}\na big star\n".encode(),
        "json": json.dumps({"captions": captions}).encode(),
    }


def write_tar(path: Path, samples: dict[str, dict[str, bytes]], index: bool = True) -> Path:
    """A shard of samples (key -> extension -> content), with its index."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, content in samples.items():
            for extension, data in content.items():
                add_member(tar, f"{key}.{extension}", data)
    if index:
        write_index(scan_shard(path), index_path(path))
    return path


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """One plain file."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Path]:
    """make_shards(counts, folder="train", change=None) -> folder: shards of so many samples each.

    `change(number, members)` may alter a sample; keys count over all shards.
    """

    def make(counts: list[int], folder: str = "train", change=None, index: bool = True) -> Path:
        number = 0
        for shard, count in enumerate(counts):
            samples = {}
            for _ in range(count):
                content = members(number)
                samples[f"{number:09d}"] = change(number, content) if change else content
                number += 1
            write_tar(tmp_path / folder / f"{shard:05d}.tar", samples, index)
        return tmp_path / folder

    return make


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer of whole words."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = [*specials, *WORDS, "ein", "roter", "stern"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(specials)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)
