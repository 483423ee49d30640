"""Ways from JPEGs and captions to a batch, all with the same work.

Every one ends with float32 (batch 3 size size), normalised, and the ids of a batch of captions; it
shuffles, decodes, crops at random (of half the area to all of it) and resizes with bicubic
interpolation and antialiasing. Those that keep uint8 normalise a batch at once, as ours does.

    decode only              our decoder alone, on bytes that are in memory: the ceiling
    images alone             our decoder, crop, resize and normalising on such bytes: nothing is
                             read, shuffled or tokenized
    ours                     `FineTuningDataModule` with `RetrievalSamples`
    ours, reduced            the same with `view.reduce`, where images are twice as large as views
    webdataset + PIL         what one writes first: ToTensor and Normalize on each image
    webdataset, uint8        torchvision's decoder, uint8 until the batch
    litdata + PIL            as the second, from litdata's own format
    litdata, uint8           as the third
    simplejpeg + OpenCV      our reader, but these two libraries, in threads of this process;
                             cubic without antialiasing, which OpenCV does not have
"""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.decoders import Limits
from datamodules.fine_tuning import FineTuningDataModule
from datamodules.image_text import RetrievalSamples
from datamodules.loading import Loading
from datamodules.reading import Samples
from datamodules.sources import Source
from datamodules.transforms import View, random_crop, training_view
from mhmoe_mm.batches import normalized
from mhmoe_mm.inputs.images import decode_image
from mhmoe_mm.inputs.pixels import stack_pixels
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.inputs.tokenization import Tokenizer
from tools.benchmarks.data_corpus import Corpus
from tools.benchmarks.data_peers import litdata_loader, webdataset_loader

DECODE, IMAGES, OURS, REDUCED = "decode only", "images alone", "ours", "ours, reduced"
REFERENCE = "webdataset + PIL"
MAX_TOKENS = 64


class Setting(NamedTuple):
    """Where a pipeline works: in processes of its own, in threads, or between two batches."""

    workers: int = 0
    threads: int = 0

    def __str__(self) -> str:
        if self.workers:
            return f"{self.workers} worker{'s' * (self.workers > 1)}"
        return f"{self.threads} thread{'s' * (self.threads > 1)}" if self.threads else "in line"


@dataclass(frozen=True)
class Work:
    """What all of them do."""

    corpus: Corpus
    folder: Path
    """For what a pipeline needs besides: litdata's copy of the samples."""
    view: View
    batch_size: int

    @property
    def texts(self) -> Texts:
        return Texts(Tokenizer(self.corpus.tokenizer), MAX_TOKENS)


class Pipeline(NamedTuple):
    """One way."""

    needs: tuple[str, ...]
    """Modules that must be installed."""
    in_threads: bool
    """Whether it can work in threads of this process."""
    in_workers: bool
    batches: Callable[[Work, Setting], Iterator[Any]]


def decode_only(work: Work, setting: Setting) -> Iterator[Any]:
    data = in_memory(work)

    def decoded(start: int) -> list[Tensor]:
        return [decode_image(image) for image in data[start : start + work.batch_size]]

    return ahead(decoded, starts_of(work), setting)


def images_alone(work: Work, setting: Setting) -> Iterator[Any]:
    data = in_memory(work)

    def made(start: int) -> tuple[Tensor, None]:
        numbers = range(start, start + work.batch_size)
        views = [training_view(decode_image(data[n]), work.view, random.Random(n)) for n in numbers]
        return stack_pixels(views), None

    return as_floats(ahead(made, starts_of(work), setting))


def in_memory(work: Work) -> list[np.ndarray]:
    """The JPEGs, as the decoder reads them."""
    return [np.frombuffer(bytearray(image), np.uint8) for image, _ in work.corpus.samples]


def starts_of(work: Work) -> range:
    """Of the batches of an epoch, the number of the first sample."""
    return range(0, len(work.corpus.samples) - work.batch_size + 1, work.batch_size)


def ours(work: Work, setting: Setting, reduce: bool = False) -> Iterator[Any]:
    loader = FineTuningDataModule(
        Source(work.corpus.shards, work.batch_size, max_tokens=MAX_TOKENS),
        RetrievalSamples(),
        work.corpus.tokenizer,
        view=replace(work.view, reduce=reduce),
        loading=Loading(workers=setting.workers, threads=setting.threads),
    ).training_loader()
    for batch in loader:
        yield normalized(batch.pixel), batch.token


def by_webdataset(work: Work, setting: Setting, uint8: bool) -> Iterator[Any]:
    loader = webdataset_loader(
        work.corpus.shards, work.view, work.texts, work.batch_size, setting.workers, uint8
    )
    return as_floats(loader)


def by_litdata(work: Work, setting: Setting, uint8: bool) -> Iterator[Any]:
    loader = litdata_loader(
        work.corpus.samples, work.folder / "litdata", work.view, work.texts, work.batch_size,
        setting.workers, uint8,
    )  # fmt: skip
    return as_floats(loader)


def by_opencv(work: Work, setting: Setting) -> Iterator[Any]:
    jpeg, cv2 = import_module("simplejpeg"), import_module("cv2")
    cv2.setNumThreads(0)  # the threads are ours
    samples, texts, side = Samples(work.corpus.shards, Limits(), work.folder), work.texts, work.view
    order = torch.randperm(len(samples)).tolist()

    def made(start: int) -> tuple[Tensor, Tensor]:
        pixels, captions = [], []
        for number in order[start : start + work.batch_size]:
            sample = samples[number]
            image = jpeg.decode_jpeg(sample.fetch("jpg"))
            top, left, tall, wide = random_crop(*image.shape[:2], side, random.Random(number))
            crop = image[top : top + tall, left : left + wide]
            pixels.append(cv2.resize(crop, (side.size,) * 2, interpolation=cv2.INTER_CUBIC))
            captions.append(sample.fetch("txt").tobytes().decode().strip())
        pixel = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return pixel, texts.batch(captions)[0]

    return as_floats(ahead(made, starts_of(work), setting))


def as_floats(batches: Iterable[tuple[Tensor, Any]]) -> Iterator[tuple[Tensor, Any]]:
    """Batches of which those that are uint8 are normalised here, where the network is."""
    for pixel, token in batches:
        yield normalized(pixel) if pixel.dtype == torch.uint8 else pixel, token


def ahead(make: Callable[[int], Any], plan: Iterable[int], setting: Setting) -> Iterator[Any]:
    """`make` of each, in order; in threads one more than there are threads is made ahead."""
    if not setting.threads:
        yield from map(make, plan)
        return
    rest = iter(plan)
    with ThreadPoolExecutor(setting.threads) as pool:
        try:
            waiting = deque(pool.submit(make, n) for n in islice(rest, setting.threads + 1))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(make, n) for n in islice(rest, 1))
                yield done
        finally:
            pool.shutdown(cancel_futures=True)


PIPELINES: dict[str, Pipeline] = {
    DECODE: Pipeline((), True, False, decode_only),
    IMAGES: Pipeline((), True, False, images_alone),
    OURS: Pipeline((), True, True, ours),
    REDUCED: Pipeline((), True, True, lambda *a: ours(*a, reduce=True)),
    REFERENCE: Pipeline(("webdataset",), False, True, lambda *a: by_webdataset(*a, False)),
    "webdataset, uint8": Pipeline(("webdataset",), False, True, lambda *a: by_webdataset(*a, True)),
    "litdata + PIL": Pipeline(("litdata",), False, True, lambda *a: by_litdata(*a, False)),
    "litdata, uint8": Pipeline(("litdata",), False, True, lambda *a: by_litdata(*a, True)),
    "simplejpeg + OpenCV": Pipeline(("simplejpeg", "cv2"), True, False, by_opencv),
}


def missing(name: str) -> list[str]:
    """Modules that a pipeline needs and that are not installed."""
    return [m for m in PIPELINES[name].needs if m not in sys.modules and not find_spec(m)]


def settings_of(name: str, workers: Iterable[int], threads: Iterable[int]) -> list[Setting]:
    """The settings in which a pipeline is measured: without helpers, in threads, in workers."""
    pipeline = PIPELINES[name]
    found = [Setting()] if name != DECODE and (0 in workers or not pipeline.in_workers) else []
    if pipeline.in_threads:
        found += [Setting(threads=n) for n in threads if n]
    if pipeline.in_workers:
        found += [Setting(workers=n) for n in workers if n]
    return found
