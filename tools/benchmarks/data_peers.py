"""The loaders that others would use, as their documentation has them.

webdataset reads our shards; litdata reads its own format, into which the same bytes are written.
"""

import io
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import Compose, InterpolationMode, Normalize, RandomResizedCrop
from torchvision.transforms import ToTensor as ToFloat
from torchvision.transforms.v2 import RandomResizedCrop as CropUint8

from datamodules.transforms import View
from mhmoe_mm.inputs.texts import Texts

CHUNK = "64MB"
POOL = 256
"""Samples that webdataset shuffles among each other."""


class Floats:
    """JPEG to float32 (3 size size), by PIL and torchvision's first transforms."""

    def __init__(self, view: View):
        crop = RandomResizedCrop(view.size, view.scale, view.ratio, InterpolationMode.BICUBIC)
        self.seen = Compose([crop, ToFloat(), Normalize([0.5] * 3, [0.5] * 3)])

    def __call__(self, data: bytes) -> Tensor:
        return self.seen(Image.open(io.BytesIO(data)).convert("RGB"))


class Uint8:
    """JPEG to uint8 (3 size size), by torchvision."""

    def __init__(self, view: View):
        self.seen = CropUint8(view.size, view.scale, view.ratio, InterpolationMode.BICUBIC)

    def __call__(self, data: bytes) -> Tensor:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return self.seen(decode_jpeg(encoded, mode=ImageReadMode.RGB))


class Collate:
    """(image, caption) of each -> (images, ids of the captions)."""

    def __init__(self, texts: Texts):
        self.texts = texts

    def __call__(self, rows: list[tuple[Tensor, str]]) -> tuple[Tensor, Tensor]:
        images, captions = zip(*rows, strict=True)
        return torch.stack(images), self.texts.batch(captions)[0]


def caption_of(data: bytes) -> str:
    """The only line of a `.txt`."""
    return data.decode().strip()


def webdataset_loader(
    shards: list[str], view: View, texts: Texts, batch_size: int, workers: int, uint8: bool
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches of shards."""
    wds: Any = import_module("webdataset")
    image = Uint8(view) if uint8 else Floats(view)
    samples = (
        wds.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .shuffle(POOL, initial=POOL // 4)
        .to_tuple("jpg", "txt")
        .map_tuple(image, caption_of)
        .batched(batch_size, collation_fn=Collate(texts), partial=False)
    )
    return wds.WebLoader(samples, batch_size=None, num_workers=workers)


def litdata_loader(
    samples: list[tuple[bytes, str]], folder: Path, view: View, texts: Texts, batch_size: int,
    workers: int, uint8: bool,
) -> Iterable[tuple[Tensor, Tensor]]:  # fmt: skip
    """Batches of samples, which are written into `folder` unless they lie there."""
    litdata: Any = import_module("litdata")
    if not (folder / "index.json").exists():
        write_litdata(samples, folder)
    image = Uint8(view) if uint8 else Floats(view)
    dataset = litdata.StreamingDataset(
        str(folder), shuffle=True, drop_last=True, transform=Pair(image)
    )
    return litdata.StreamingDataLoader(
        dataset, batch_size=batch_size, num_workers=workers, collate_fn=Collate(texts)
    )


class Pair:
    """A sample of litdata as (image, caption)."""

    def __init__(self, image: Any):
        self.image = image

    def __call__(self, sample: dict[str, Any]) -> tuple[Tensor, str]:
        return self.image(sample["jpg"]), sample["txt"]


def write_litdata(samples: list[tuple[bytes, str]], folder: Path) -> None:
    """The samples in litdata's format."""
    writer_module: Any = import_module("litdata.streaming.writer")
    folder.mkdir(parents=True)
    writer = writer_module.BinaryWriter(str(folder), chunk_bytes=CHUNK)
    for number, (image, caption) in enumerate(samples):
        writer[number] = {"jpg": image, "txt": caption}
    writer.done()
    writer.merge()
