"""A picture of what a trained model retrieves: queries with the five best answers to each.

    python -m tools.retrieval_gallery --ckpt runs/pairs/version_0 --shards data/openmoji/test \
        --language en --out gallery.png

For some images of a split: the images that the model finds for a caption of each, among all images,
and the captions that it finds for the image, among all captions. The right one has a thick frame
and a tick; where it is not among the five it stands at the end of the row with its rank.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.errors import SampleError
from datamodules.language import all_captions
from datamodules.reading import Samples
from mhmoe_mm.inference import AT_A_TIME, Model
from mhmoe_mm.metrics.recall import ranks
from mhmoe_mm.storage.whole import write_bytes
from mhmoe_mm.tasks.retrieval import Retrieval
from tools.build_shards.errors import InputError, run_reporting, some
from tools.build_shards.progress import ProgressBar
from tools.gallery_options import check_place, chosen, samples_of
from tools.gallery_sheet import CELL, DPI, Cell, Section, draw, letters_lacking, png
from tools.trained_model import load_model

TOP = 5
COLUMNS = ["query", *map(str, range(1, TOP + 1)), "right one, if missed"]


class Collection(NamedTuple):
    """All images and captions of a split, as vectors."""

    samples: Samples
    texts: list[str]
    text_image: Tensor
    """The number of the image that each text belongs to, int64 (texts)."""
    image_vector: Tensor
    text_vector: Tensor


class Found(NamedTuple):
    """The best candidates for a query, and where the first right one is."""

    best: list[int]
    score: list[float]
    """Of every candidate."""
    right: list[bool]
    """Of every candidate: whether it is an answer."""
    first: int
    """The right candidate that comes first."""
    rank: int
    """Its place, from 1."""


def main(argv: list[str] | None = None) -> int:
    """Run retrieval_gallery; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: _run(arguments), "Interrupted; no picture was written.")


def _run(given: argparse.Namespace) -> int:
    check_place(given.out)
    model = load_model(given.ckpt, Retrieval, given.device, given.plugin)
    try:
        samples = samples_of(given.shards)
        numbers = chosen(given.queries, len(samples), given.seed)
        collection = collect(model, samples, given.language)
        sections = [
            images_of_texts(collection, numbers, given.seed),
            texts_of_images(collection, numbers),
        ]
    except SampleError as error:
        textless = "has no member .txt" in str(error)
        hint = " (To take captions of .json, add --language.)" if textless else ""
        raise InputError(f"{error}{hint}") from error
    title, *facts = described(collection, model.source, given.shards, given.language)
    write_bytes(given.out, png(draw(title, facts, sections)))
    print("\n".join([f"{given.out}: {len(numbers)} queries each way", *facts]))
    cells = [cell for section in sections for row in section.rows for cell in row if cell]
    if lacking := letters_lacking([c.content for c in cells if isinstance(c.content, str)]):
        print(f"The font lacks {some(lacking)}: they are drawn as boxes.", file=sys.stderr)
    return 0


def collect(model: Model, samples: Samples, languages: list[str] | None) -> Collection:
    """Read and embed all images, a few at a time, and all captions."""
    captions = [all_captions(samples[number], languages) for number in range(len(samples))]
    texts = [caption for several in captions for caption in several]
    text_image = torch.tensor([i for i, several in enumerate(captions) for _ in several])
    image_vector = all_finite(embed_images(model, samples), model.source)
    text_vector = all_finite(model.embed_text(texts), model.source)
    return Collection(samples, texts, text_image, image_vector, text_vector)


def embed_images(model: Model, samples: Samples) -> Tensor:
    """The vectors of all images, a few read at a time: float32 (images dim)."""
    vectors: list[Tensor] = []
    with ProgressBar("images", len(samples), unit="images") as bar:
        for start in range(0, len(samples), AT_A_TIME):
            part = range(start, min(start + AT_A_TIME, len(samples)))
            vectors.append(model.embed_image([samples[number].image() for number in part]))
            bar.advance(len(part))
    return torch.cat(vectors)


def all_finite(vectors: Tensor, source: str) -> Tensor:
    """The same vectors; InputError where a diverged model made them."""
    if not vectors.isfinite().all():
        raise InputError(f"The vectors of {source} hold NaN or infinity: it has diverged.")
    return vectors


def find(query: Tensor, candidate: Tensor, right: Tensor) -> Found:
    """The best candidates (candidates dim) for a query (dim), of which `right` are answers.

    Scored as by `mhmoe_mm.metrics.recall.ranks`, ties against the query too.
    """
    score = (candidate.double() @ query.double()).float()
    order = np.lexsort((right.numpy(), -score.numpy())).tolist()
    rank = next(place for place, number in enumerate(order, start=1) if right[number])
    return Found(order[:TOP], score.tolist(), right.tolist(), order[rank - 1], rank)


def images_of_texts(all_: Collection, numbers: list[int], seed: int) -> Section:
    """For a caption of each of these images, the images that are found."""
    rows = []
    for number in numbers:
        own = (all_.text_image == number).nonzero()[:, 0].tolist()
        text = random.Random(f"{seed} {number}").choice(own)
        right = torch.arange(len(all_.image_vector)) == number
        found = find(all_.text_vector[text], all_.image_vector, right)
        query = Cell(all_.texts[text], f"caption of image {number}", query=True)
        rows.append([query, *_answers(found, {i: _picture(all_, i) for i in _shown(found)})])
    return Section("Text to image: a caption looks for its image", COLUMNS, rows)


def texts_of_images(all_: Collection, numbers: list[int]) -> Section:
    """For each of these images, the captions that are found."""
    rows = []
    for number in numbers:
        found = find(all_.image_vector[number], all_.text_vector, all_.text_image == number)
        query = Cell(_picture(all_, number), f"image {number}", query=True)
        rows.append([query, *_answers(found, {i: all_.texts[i] for i in _shown(found)})])
    return Section("Image to text: an image looks for its captions", COLUMNS, rows)


def _shown(found: Found) -> list[int]:
    return [*found.best, found.first]


def _answers(found: Found, content: dict[int, np.ndarray] | dict[int, str]) -> list[Cell | None]:
    """The best ones, empty cells where there are fewer, and the right one if it is not there."""
    cells: list[Cell | None] = [
        Cell(content[i], f"{'✓ right  ' * found.right[i]}{found.score[i]:.3f}", found.right[i])
        for i in found.best
    ]
    cells += [None] * (TOP - len(cells))
    label = f"✓ rank {found.rank}  {found.score[found.first]:.3f}"
    missed = found.first not in found.best
    return [*cells, Cell(content[found.first], label, right=True) if missed else None]


def _picture(all_: Collection, number: int) -> np.ndarray:
    """An image no larger than it is drawn."""
    image = Image.fromarray(all_.samples[number].image().permute(1, 2, 0).numpy())
    image.thumbnail((CELL * DPI, CELL * DPI))
    return np.asarray(image)


def described(
    all_: Collection, source: str, shards: str, languages: list[str] | None
) -> tuple[str, str, str]:
    """What the picture says of itself: the model, the collection, the recalls."""
    image_id, text_id = torch.arange(len(all_.image_vector)), all_.text_image
    before = {
        "text to image": ranks(all_.text_vector, text_id, all_.image_vector, image_id),
        "image to text": ranks(all_.image_vector, image_id, all_.text_vector, text_id),
    }
    recalls = [
        f"{direction}: recall@1 {(place < 1).float().mean():.1%}, "
        f"recall@{TOP} {(place < TOP).float().mean():.1%}"
        for direction, place in before.items()
    ]
    of = f" ({' '.join(languages)})" if languages else ""
    return (
        f"What {source} retrieves",
        f"{len(image_id):,} images and {len(text_id):,} texts{of} of {shards}",
        "; ".join(recalls),
    )


def _parser() -> argparse.ArgumentParser:
    about = __doc__ or ""
    parser = argparse.ArgumentParser(prog="python -m tools.retrieval_gallery", description=about)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--ckpt", required=True, help="a checkpoint of Retrieval, or the folder of its run")
    add("--shards", required=True, help="a folder of shards, or a pattern as in a configuration")
    add("--out", type=Path, required=True, metavar="FILE.png", help="the picture")
    add("--language", nargs="+", metavar="CODE", help="captions of .json (default: lines of .txt)")
    add("--queries", metavar="N", help="how many images (default 8), or which: 3,17 (one: 17,)")
    add("--seed", type=int, default=0, help="of the choice of queries (default 0)")
    add("--device", default="cpu", help="where the model computes (default cpu)")
    add("--plugin", action="append", default=[], metavar="PKG", help="as for mhmoe-mm")
    return parser


if __name__ == "__main__":
    sys.exit(main())
