"""Build a discrete codebook of image patches from shards: `python -m tools.build_codebook DIR ...`.

k-means over the patches of the training images: a stand-in for a learned image tokenizer, so that
masked image modelling has discrete targets. The same images, options and seed give the same file.
"""

import argparse
import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save
from torch import Tensor

from datamodules.index import index_path, read_index
from mhmoe_mm.batches import normalized
from mhmoe_mm.inputs.images import ImageError, decode_image
from mhmoe_mm.inputs.pixels import resize
from mhmoe_mm.storage.whole import write_bytes
from tools.build_shards.errors import InputError, run_reporting
from tools.build_shards.images import SUFFIXES
from tools.build_shards.progress import ProgressBar
from tools.build_shards.reading import read_samples, shards_of

PICTURES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
CHUNK = 2048
PATCHES = "c (h p) (w q) -> (h w) (c p q)"


def main(argv: list[str] | None = None) -> int:
    """Run build_codebook; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_reporting(lambda: _run(arguments), "Interrupted; no codebook was written.")


def _run(arguments: argparse.Namespace) -> int:
    size, patch, codes = arguments.image_size, arguments.patch_size, arguments.codes
    if min(size, patch, codes, arguments.max_patches) < 1 or size % patch:
        raise InputError(
            f"--image-size {size} must be a multiple of --patch-size {patch},"
            " and all numbers must be above 0."
        )
    if not arguments.out.parent.is_dir():
        raise InputError(f"{arguments.out.parent}, the folder of --out, does not exist.")
    generator = torch.Generator().manual_seed(arguments.seed)
    patches = read_patches(arguments.folder, size, patch, arguments.max_patches, generator)
    point, weight = torch.unique(patches, dim=0, return_counts=True)
    if len(point) < codes:
        raise InputError(
            f"--codes {codes}: the images have only {len(point)} distinct patches"
            f" of {patch} x {patch} pixels."
        )
    code, rounds = k_means(point, weight, codes, arguments.rounds, generator)
    about = {
        "patch_size": patch,
        "codes": codes,
        "image_size": size,
        "seed": arguments.seed,
        "card_sha256": _card_sha256(arguments.folder),
    }
    content = codebook_bytes(code, {name: str(value) for name, value in about.items()})
    write_bytes(arguments.out, content)
    print(f"{arguments.out}: {codes} codes, sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"{len(patches):,} patches ({len(point):,} distinct), {rounds} rounds; ", end="")
    print(usage(point, weight, code))
    return 0


def usage(point: Tensor, weight: Tensor, code: Tensor) -> str:
    """How well and how evenly the codes stand for the patches, in words."""
    index, distance = nearest(point, code)
    mass = weight.double() / weight.sum()
    error = (distance * mass).sum().item() / point.shape[1]
    share = torch.bincount(index, weights=mass, minlength=len(code))
    used = share[share > 0]
    perplexity = torch.exp(-(used * used.log()).sum()).item()
    return (
        f"mean squared error {error:.5f}, {len(used)} of {len(code)} codes in use,"
        f" perplexity {perplexity:.1f}, most frequent code {share.max().item():.1%}"
    )


def read_patches(
    folder: Path, image_size: int, patch_size: int, max_patches: int, generator: torch.Generator
) -> Tensor:
    """float32 (patch, 3*p*p): patches of the training images, at most a random `max_patches`."""
    shards = shards_of(folder, "train")
    num_images = sum(len(read_index(index_path(shard)).samples) for shard in shards)
    per_image = -(-max_patches // num_images)
    kept: list[Tensor] = []
    with ProgressBar("images", len(shards), unit="shards") as bar:
        for shard in shards:
            for sample in read_samples(shard, PICTURES):
                if not sample.members:
                    raise InputError(f"{sample.where}: there is no image.")
                (data, *_) = sample.members.values()
                pixel = _pixels(data, image_size, sample.where)
                flat = rearrange(pixel, PATCHES, p=patch_size, q=patch_size)
                kept.append(_some_rows(flat, per_image, generator))
            bar.advance()
    return normalized(_some_rows(torch.cat(kept), max_patches, generator))


def _some_rows(table: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """At most `most` rows, drawn without replacement, in their order."""
    if len(table) <= most:
        return table
    return table[torch.randperm(len(table), generator=generator)[:most].sort().values]


def k_means(
    point: Tensor, weight: Tensor, codes: int, rounds: int, generator: torch.Generator
) -> tuple[Tensor, int]:
    """Centres (code, dim) by Lloyd's rounds from a k-means++ start, and the rounds it took.

    `point` (number, dim) are distinct, `weight` (number,) says how often each occurs. A centre that
    loses all its points starts again at the point that is worst represented.
    """
    code = _spread_start(point, weight, codes, generator)
    mass = weight.double()
    before = None
    for done in range(1, rounds + 1):
        index, distance = nearest(point, code)
        if before is not None and torch.equal(index, before):
            return code, done
        count = torch.bincount(index, weights=mass, minlength=codes)
        total = torch.zeros(codes, point.shape[1], dtype=torch.float64)
        total.index_add_(0, index, point.double() * mass.unsqueeze(1))
        code = (total / count.clamp(min=1).unsqueeze(1)).float()
        lost = (count == 0).nonzero().flatten().tolist()
        for each in lost:
            worst = int((distance * mass).argmax())
            code[each] = point[worst]
            distance = torch.minimum(distance, (point - point[worst]).square().sum(1))
        before = None if lost else index
    return code, rounds


def _spread_start(point: Tensor, weight: Tensor, codes: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is a point drawn by its squared distance to those so far."""
    mass = weight.double()
    distance = torch.ones_like(mass)
    chosen: list[int] = []
    for _ in range(codes):
        reached = (distance * mass).cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64) * reached[-1]
        # The first point whose cumulated distance is beyond the draw: never one at distance 0.
        at = min(int(torch.searchsorted(reached, drawn, right=True)), len(point) - 1)
        far = (point - point[at]).square().sum(1).double()
        distance = torch.minimum(distance, far) if chosen else far
        chosen.append(at)
    return point[chosen].clone()


def nearest(point: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest code of every point, and the squared distance to it."""
    length = code.square().sum(1)
    parts = [(length - 2 * part @ code.T).argmin(dim=1) for part in point.split(CHUNK)]
    index = torch.cat(parts)
    return index, (point - code[index]).square().sum(1)


def codebook_bytes(code: Tensor, about: dict[str, str]) -> bytes:
    """A safetensors file with `code`; its header is sorted, which the library leaves to chance."""
    raw = save({"code": code.contiguous()}, metadata=about)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    padded = header.encode().ljust(-(-len(header.encode()) // 8) * 8)
    return struct.pack("<Q", len(padded)) + padded + raw[8 + length :]


def _pixels(data: bytes, image_size: int, where: str) -> Tensor:
    """uint8 (3 size size), as the data module shows an image in evaluation."""
    try:
        image = decode_image(np.frombuffer(data, dtype=np.uint8).copy())
    except ImageError as error:
        raise InputError(f"{where}: {error}.") from error
    return resize(image, image_size)


def _card_sha256(folder: Path) -> str:
    card = folder / "card.json"
    return hashlib.sha256(card.read_bytes()).hexdigest() if card.exists() else "none"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.build_codebook", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder made by build_shards, or of shards")
    add("--out", type=Path, required=True, metavar="FILE", help="e.g. DIR/codebook.safetensors")
    add("--patch-size", type=int, default=4, metavar="PIXELS")
    add("--codes", type=int, default=256, metavar="N")
    add("--image-size", type=int, default=32, metavar="PIXELS")
    add("--seed", type=int, default=0)
    add("--rounds", type=int, default=30, metavar="N", help="at most so many rounds (default 30)")
    add(
        "--max-patches",
        type=int,
        default=200_000,
        metavar="N",
        help="use a random so many (default 200000)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
