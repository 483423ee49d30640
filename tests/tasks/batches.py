"""A small network and small batches for it, in the shapes that data modules deliver."""

from functools import partial

import torch

from mhmoe_mm.batches import (
    IGNORED,
    CaptionBatch,
    ClassBatch,
    ImageBatch,
    Nlvr2Batch,
    PairBatch,
    PictureBatch,
    PretrainingBatch,
    RetrievalBatch,
    TextBatch,
    VqaBatch,
)
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.moe import GeluExperts, MHMoE, TopKRouter

VOCAB, SIZE, PATCH, PATCHES, SEQ = 43, 20, 5, 16, 11


def small_net(layout=SharedLayout, router=TopKRouter, num_layers=2) -> BEiT3:
    sparse = partial(
        MHMoE,
        num_heads=2,
        num_experts=5,
        router=router,
        experts=partial(GeluExperts, hidden=13),
    )
    built = layout(dense=partial(GeluFFN, hidden=29), sparse=sparse)
    return BEiT3(built, SIZE, PATCH, VOCAB, 28, num_layers, 2, max_text=SEQ)


def images(n: int, seed: int = 0) -> ImageBatch:
    draw = torch.Generator().manual_seed(seed)
    pixel = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)
    masked = torch.rand(n, PATCHES, generator=draw).argsort(dim=1) < 6
    return ImageBatch(pixel, masked, [f"0/{i}" for i in range(n)])


def texts(n: int, seed: int = 0) -> TextBatch:
    draw = torch.Generator().manual_seed(seed)
    token = torch.randint(5, VOCAB, (n, SEQ), generator=draw)
    pad = torch.arange(SEQ)[None] >= torch.randint(4, SEQ + 1, (n, 1), generator=draw)
    chosen = (torch.rand(n, SEQ, generator=draw) < 0.4) & ~pad
    chosen[:, 1] = True
    target = torch.where(chosen, token, IGNORED)
    hidden = torch.where(chosen, 4, token)
    return TextBatch(hidden.masked_fill(pad, 1), target, pad, ["en"] * n, images(n).key)


def pairs(n: int, seed: int = 0) -> PairBatch:
    image, text = images(n, seed + 1), texts(n, seed + 2)
    return PairBatch(image.pixel, image.masked, *text)


def batch(n: int = 3, seed: int = 0) -> PretrainingBatch:
    return PretrainingBatch(images(n, seed), texts(n + 1, seed), pairs(n + 2, seed))


def questions(n: int, answers: int = 7, seed: int = 0) -> VqaBatch:
    """Question i has the answers i and i + 1, with scores 1 and 0.3."""
    image, text = images(n, seed), texts(n, seed)
    place = torch.arange(n)
    target = torch.zeros(n, answers)
    target[place, (place + 1) % answers] = 0.3
    target[place, place % answers] = 1.0
    valid = torch.ones(n, dtype=torch.bool)
    ids: list[str | int] = list(range(100, 100 + n))
    return VqaBatch(image.pixel, text.token, text.pad, target, ids, valid, image.key)


def captioned(n: int, seed: int = 0, same: int = 1) -> RetrievalBatch:
    """`same` rows after each other have the same image."""
    image, text = images(n, seed), texts(n, seed)
    of_row = torch.arange(n) // same
    valid = torch.ones(n, dtype=torch.bool)
    return RetrievalBatch(image.pixel[of_row], text.token, text.pad, of_row + 40, valid, image.key)


def statements(n: int, seed: int = 0) -> Nlvr2Batch:
    left, right, text = images(n, seed), images(n, seed + 1), texts(n, seed)
    label = torch.arange(n) % 2
    names = [f"dev-{i // 2}-{i % 2}-0" for i in range(n)]
    valid = torch.ones(n, dtype=torch.bool)
    return Nlvr2Batch(left.pixel, right.pixel, text.token, text.pad, label, names, valid, left.key)


def captions(n: int, seed: int = 0) -> CaptionBatch:
    image, text = images(n, seed), texts(n, seed)
    valid = torch.ones(n, dtype=torch.bool)
    names = [f"image{i}" for i in range(n)]
    return CaptionBatch(
        image.pixel, text.token, text.target, text.pad, names, [[]] * n, valid, image.key
    )


def classes(n: int, num_classes: int = 5, seed: int = 0) -> ClassBatch:
    image = images(n, seed)
    valid = torch.ones(n, dtype=torch.bool)
    return ClassBatch(image.pixel, torch.arange(n) % num_classes, valid, image.key)


def pictures(n: int, seed: int = 0) -> PictureBatch:
    """Images whose patches differ in brightness, so that they can be told apart."""
    draw = torch.Generator().manual_seed(seed)
    bright = torch.rand(n, 3, SIZE // PATCH, SIZE // PATCH, generator=draw)
    pixel = bright.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3) * 200
    pixel = (pixel + 55 * torch.rand(n, 3, SIZE, SIZE, generator=draw)).to(torch.uint8)
    return PictureBatch(pixel, torch.ones(n, dtype=torch.bool), [f"0/{i}" for i in range(n)])
