"""A picture of what an image tokenizer's codes stand for.

    python -m tools.code_gallery tokenizer_shapes --shards data/shapes_64/val --out codes.png

For some images: the image, a map of its codes, and the image put together from what the patches of
each code look like on average. Codes with alike vectors have alike colours. Below, the codes that
are used most, with patches that have them. Printed besides: how many codes are used.

TOKENIZER is an export (`python -m tools.export`) or a checkpoint of the task ImageTokenizer.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from datamodules.errors import SampleError
from datamodules.reading import Samples
from mhmoe_mm.batches import normalized
from mhmoe_mm.inputs.pixels import resize
from mhmoe_mm.metrics.codebook_usage import CodebookUsage
from mhmoe_mm.models.vqkd import VQKD
from mhmoe_mm.models.vqkd_codes import read_tokenizer
from mhmoe_mm.storage.whole import write_bytes
from tools.build_shards.errors import InputError, run_reporting
from tools.build_shards.progress import ProgressBar
from tools.gallery_options import check_place, chosen, samples_of
from tools.gallery_sheet import Cell, Section, draw, png

AT_A_TIME, EXAMPLES, SHOWN = 64, 5, 96
"""Images that are tokenized together; patches that a code is shown by; pixels of a cell's side."""
MAPS = ["image", "its codes", "their mean patches"]


class Tokens(NamedTuple):
    """The codes of all images, and what they look like."""

    code: Tensor
    """int64 (images patches)."""
    count: Tensor
    """int64 (codes): patches that have each."""
    mean: Tensor
    """float64 (codes 3*p*p): the mean pixels of these, 0 to 255; zeros where there are none."""


def main(argv: list[str] | None = None) -> int:
    """Run code_gallery; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: _run(arguments), "Interrupted; no picture was written.")


def _run(given: argparse.Namespace) -> int:
    check_place(given.out)
    try:
        tokenizer = read_tokenizer(given.tokenizer).eval()
        samples = samples_of(given.shards)
        numbers = chosen(given.images, len(samples), given.seed, "--images")
        found = tokenize(tokenizer, samples)
    except (ValueError, SampleError) as error:
        raise InputError(str(error)) from error
    usage = CodebookUsage(tokenizer.num_codes)
    usage.update(found.code)
    used = usage.compute()
    facts = [
        f"{len(samples):,} images of {given.shards}, {found.code.numel():,} patches",
        f"{used['codes_used']:.1%} of {tokenizer.num_codes:,} codes are used, perplexity "
        f"{used['codes_perplexity']:.1f}, the commonest has {share(found):.1%} of the patches",
    ]
    sections = [
        maps(tokenizer, samples, found, numbers),
        commonest(tokenizer, samples, found, given.codes),
    ]
    write_bytes(given.out, png(draw(f"Codes of {given.tokenizer}", facts, sections)))
    print("\n".join([f"{given.out}: {len(numbers)} images", *facts]))
    return 0


def share(found: Tokens) -> float:
    """The part of all patches that have the commonest code."""
    return float(found.count.max() / found.count.sum())


def pixels_of(samples: Samples, number: int, size: int) -> Tensor:
    """uint8 (3 size size), as an evaluation shows it."""
    return resize(samples[number].image(), size)


@torch.no_grad()
def tokenize(tokenizer: VQKD, samples: Samples) -> Tokens:
    """Read and tokenize all images, a few at a time."""
    codes, side = tokenizer.num_codes, tokenizer.patch_size
    total = torch.zeros(codes, 3 * side**2, dtype=torch.float64)
    found: list[Tensor] = []
    with ProgressBar("images", len(samples), unit="images") as bar:
        for start in range(0, len(samples), AT_A_TIME):
            part = range(start, min(start + AT_A_TIME, len(samples)))
            pixel = torch.stack([pixels_of(samples, n, tokenizer.image_size) for n in part])
            code = tokenizer.tokens(normalized(pixel))
            total.index_add_(0, code.flatten(), patches(pixel, side).flatten(0, 1).double())
            found.append(code)
            bar.advance(len(part))
    code = torch.cat(found)
    count = torch.bincount(code.flatten(), minlength=codes)
    return Tokens(code, count, total / count.clamp(min=1)[:, None])


def patches(pixel: Tensor, side: int) -> Tensor:
    """(batch patches 3*p*p) of (batch 3 height width)."""
    return rearrange(pixel, "b c (h p) (w q) -> b (h w) (c p q)", p=side, q=side)


def assembled(patch: Tensor, grid: int) -> np.ndarray:
    """uint8 (height width 3) from (patches 3*p*p), 0 to 255."""
    side = round((patch.shape[1] / 3) ** 0.5)
    image = rearrange(patch, "(h w) (c p q) -> (h p) (w q) c", h=grid, c=3, p=side)
    return enlarged(image.round().to(torch.uint8).numpy())


def enlarged(image: np.ndarray) -> np.ndarray:
    """With whole pixels as squares, so that small images are not blurred where they are drawn."""
    times = max(1, SHOWN // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)


def colours(code: Tensor) -> Tensor:
    """float (codes 3), 0 to 255: the three directions in which codes (codes dim) differ most, as
    red, green and blue.
    """
    centred = code - code.mean(dim=0)
    direction = torch.linalg.svd(centred, full_matrices=False)[2][:3]
    place = centred @ direction.T
    low, high = place.min(dim=0).values, place.max(dim=0).values
    scaled = 25 + 220 * (place - low) / (high - low).clamp(min=1e-9)
    return torch.nn.functional.pad(scaled, (0, 3 - scaled.shape[1]), value=128.0)


def maps(tokenizer: VQKD, samples: Samples, found: Tokens, numbers: list[int]) -> Section:
    """Images beside their codes."""
    colour, rows = colours(tokenizer.codebook.code), []
    for number in numbers:
        code = found.code[number]
        pixel = pixels_of(samples, number, tokenizer.image_size)
        rows.append(
            [
                Cell(enlarged(pixel.permute(1, 2, 0).numpy()), f"image {number}", query=True),
                Cell(assembled(colour[code], tokenizer.grid), f"{len(code.unique())} codes"),
                Cell(assembled(found.mean[code], tokenizer.grid), ""),
            ]
        )
    return Section("Images and their codes", MAPS, rows)


def commonest(tokenizer: VQKD, samples: Samples, found: Tokens, number: int) -> Section:
    """The codes that are used most, each with its mean patch and a few patches that have it."""
    side, total = tokenizer.patch_size, found.count.sum()
    rows = []
    for code in found.count.argsort(descending=True, stable=True)[:number].tolist():
        if not found.count[code]:
            break
        places = (found.code == code).nonzero()
        step = max(1, len(places) // EXAMPLES)
        share = float(found.count[code] / total)
        row = [Cell(assembled(found.mean[code][None], 1), f"code {code}: {share:.1%}", query=True)]
        for image, place in places[::step][:EXAMPLES].tolist():
            pixel = pixels_of(samples, image, tokenizer.image_size)
            row.append(Cell(assembled(patches(pixel[None], side)[0, place][None], 1), f"{image}"))
        rows.append(row + [None] * (1 + EXAMPLES - len(row)))
    columns = ["mean of its patches", *[f"in image {'...' * (n > 0)}" for n in range(EXAMPLES)]]
    return Section("The commonest codes", columns, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.code_gallery", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("tokenizer", type=Path, metavar="TOKENIZER", help="an export, or a checkpoint file")
    add("--shards", required=True, metavar="SHARDS", help="a folder, a glob or a brace pattern")
    add("--out", type=Path, required=True, metavar="FILE", help="the picture, a .png")
    add("--images", metavar="N", help="so many images, or their numbers such as 3,17 (default 8)")
    add("--codes", type=int, default=8, metavar="N", help="so many codes below (default 8)")
    add("--seed", type=int, default=0, help="of the choice of images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
