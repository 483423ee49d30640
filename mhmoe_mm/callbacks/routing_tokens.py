"""Recorded routing with what every token is: its sample, its place, its kind, its word or patch.

A `RoutingChunk` is one forward as plain arrays, the unit that dumps and analyses are made of.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhmoe_mm.batches import (
    IGNORED,
    ImageBatch,
    LanguageBatch,
    PairBatch,
    PretrainingBatch,
    TextBatch,
    VqaBatch,
    pixels,
)
from mhmoe_mm.callbacks.routing_record import Forward, LayerRouting
from mhmoe_mm.inputs.spelling import TOKEN_CLASSES, Spelling
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.vqa import VQA

MODALITIES = ("image", "text")
CLASSES = (*TOKEN_CLASSES, "image as a whole", "masked patch", "flat patch", "edge patch", "text")
"""What a token is; `text` where no tokenizer says more."""
WHOLE_IMAGE, MASKED_PATCH, FLAT_PATCH, EDGE_PATCH, TEXT = range(len(TOKEN_CLASSES), len(CLASSES))
ROWS_WITH_PIXELS = 8
"""Of each forward, whose images are kept too."""
EDGE_FROM = 0.02
"""Energy from which a patch counts as one with edges: a step of a tenth of the range in one pixel
of 25."""


class Samples(NamedTuple):
    """What is known of the rows of a forward; one entry each."""

    key: list[str]
    task: list[str]
    """What was asked: an objective of pretraining, or the task."""
    language: list[str]
    """Empty where there is no text, or none that is known of."""
    answer_type: list[str]
    """`yes/no`, `number`, `other`, or empty."""


class Tokens(NamedTuple):
    """The real tokens of a forward: one entry each, row by row."""

    sample: np.ndarray
    """int32, the row."""
    position: np.ndarray
    """int32, its place in its image or text, from 0."""
    modality: np.ndarray
    """int8, in `MODALITIES`."""
    token_class: np.ndarray
    """int8, in `CLASSES`."""
    vocabulary_id: np.ndarray
    """int32, -1 for images."""
    word: np.ndarray
    """int32, number of its word in its text, -1 where it is part of none or nobody can tell."""
    patch: np.ndarray
    """int32, number of its patch, row by row, -1 for what is no patch."""
    energy: np.ndarray
    """float32, root mean square of the luminance's gradient over the patch (luminance from 0 to 1,
    per pixel), nan for what is no patch."""
    clean: np.ndarray
    """bool, false where the network reads something else than what was there (masked, replaced)."""


class RoutingChunk(NamedTuple):
    """One forward."""

    samples: Samples
    tokens: Tokens
    grid: tuple[int, int]
    """Rows and columns of patches, (0, 0) without an image."""
    layers: dict[str, LayerRouting]
    """Rows count `tokens`."""
    loads: dict[str, Load]
    pixel: Mapping[int, np.ndarray] = MappingProxyType({})
    """By row: uint8 (3 height width), a few different images, for pictures."""


def chunks(
    forwards: Sequence[Forward], batch: Any, task: Task, spelling: Spelling | None
) -> list[RoutingChunk]:
    """The forwards of one step with what its batch says of them."""
    return [_chunk(forward, _part(forward, batch), task, spelling) for forward in forwards]


def _chunk(forward: Forward, part: Any, task: Task, spelling: Spelling | None) -> RoutingChunk:
    rows = len(forward.real)
    samples = samples_of(part, task, rows, forward.image is not None, forward.text is not None)
    target = getattr(part, "target", None)
    changed, text = None, forward.text
    answers = isinstance(part, LanguageBatch | VqaBatch)
    if (
        not answers
        and isinstance(target, Tensor)
        and text is not None
        and target.shape == text.shape
    ):
        changed = (target != IGNORED).cpu().numpy()
    return chunk_of(forward, samples, changed, spelling)


def chunk_of(
    forward: Forward, samples: Samples, changed: np.ndarray | None, spelling: Spelling | None
) -> RoutingChunk:
    """A forward of these rows.

    Args:
        forward: what was recorded.
        samples: its rows.
        changed: bool (batch seq_text), where the text reads something else than what was there;
            None: nowhere.
        spelling: of the text.
    """
    grid = (0, 0)
    pixel: dict[int, np.ndarray] = {}
    columns: list[dict[str, np.ndarray]] = []
    if forward.image is not None:
        side = round((forward.split - 1) ** 0.5)
        grid = (side, side)
        first = {key: row for row, key in reversed(list(enumerate(samples.key)))}
        rows = sorted(first.values())[:ROWS_WITH_PIXELS]
        pixel = dict(zip(rows, pixels(forward.image[rows]).numpy(), strict=True))
        columns.append(_of_image(forward.image, forward.masked, side))
    if forward.text is not None:
        columns.append(_of_text(forward.text.numpy(), changed, spelling))
    joined = {name: np.concatenate([c[name] for c in columns], axis=1) for name in columns[0]}
    each = np.arange(len(forward.real), dtype=np.int32)
    row = np.broadcast_to(each[:, None], forward.real.shape)
    tokens = Tokens(row[forward.real], **{n: v[forward.real] for n, v in joined.items()})
    return RoutingChunk(samples, tokens, grid, forward.layers, forward.loads, pixel)


def _part(forward: Forward, batch: Any) -> Any:
    """The part of a batch that a forward is about."""
    if not isinstance(batch, PretrainingBatch):
        return batch
    if forward.text is None:
        return batch.image
    return batch.text if forward.image is None else batch.pair


def samples_of(part: Any, task: Task, rows: int, image: bool, text: bool) -> Samples:
    """What a part of a batch says of its rows."""
    key = list(getattr(part, "key", [])) or [""]
    times = max(rows // len(key), 1)  # a row about two images is read twice
    language = [""] * rows
    if text and isinstance(part, TextBatch | PairBatch):
        language = list(part.language)
    elif isinstance(part, LanguageBatch):
        language = [part.languages[i] for i in part.language.tolist()]
    answer_type = _answer_types(part, task) if isinstance(part, VqaBatch) else [""] * rows
    return Samples((key * times)[:rows], [_asked(part, task)] * rows, language, answer_type)


def _asked(part: Any, task: Task) -> str:
    names = {ImageBatch: "masked image", TextBatch: "masked text", PairBatch: "masked pair"}
    return names.get(type(part), type(task).__name__)


def _answer_types(batch: VqaBatch, task: Task) -> list[str]:
    """As the annotations say, or else by the best answer: the types of VQA v2."""
    assert isinstance(task, VQA)
    best = [task.answers[i] for i in batch.target.argmax(dim=1).tolist()]
    known = (batch.target > 0).any(dim=1).tolist()
    return [
        task.annotations[str(question)].answer_type
        if str(question) in task.annotations
        else answer_type(answer) * there
        for question, answer, there in zip(batch.question_id, best, known, strict=True)
    ]


def answer_type(answer: str) -> str:
    """The type of an answer that nobody annotated."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.replace(".", "", 1).isdigit() else "other"


def _of_image(image: Tensor, masked: Tensor | None, side: int) -> dict[str, np.ndarray]:
    energy = patch_energy(image, side).numpy()
    rows, patches = energy.shape
    hidden = np.zeros((rows, patches), dtype=bool)
    if masked is not None:
        hidden = np.broadcast_to(masked.numpy(), hidden.shape)
    seen = np.where(energy >= EDGE_FROM, EDGE_PATCH, FLAT_PATCH)
    each = np.arange(patches, dtype=np.int32)

    def with_whole(first: float, rest: np.ndarray) -> np.ndarray:
        front = np.full((rows, 1), first, dtype=rest.dtype)
        return np.concatenate([front, np.broadcast_to(rest, (rows, patches))], axis=1)

    return {
        "position": np.broadcast_to(np.arange(patches + 1, dtype=np.int32), (rows, patches + 1)),
        "modality": np.zeros((rows, patches + 1), dtype=np.int8),
        "token_class": with_whole(
            WHOLE_IMAGE, np.where(hidden, MASKED_PATCH, seen).astype(np.int8)
        ),
        "vocabulary_id": np.full((rows, patches + 1), -1, dtype=np.int32),
        "word": np.full((rows, patches + 1), -1, dtype=np.int32),
        "patch": with_whole(-1, each),
        "energy": with_whole(np.nan, energy),
        "clean": with_whole(True, ~hidden),
    }


def _of_text(
    ids: np.ndarray, changed: np.ndarray | None, spelling: Spelling | None
) -> dict[str, np.ndarray]:
    none = np.full(ids.shape, -1, dtype=np.int32)
    word, token_class = none, np.full(ids.shape, TEXT, dtype=np.int8)
    if spelling is not None:
        word = spelling.words(ids)
        token_class = spelling.classes(ids, word)
    clean = np.ones(ids.shape, dtype=bool) if changed is None else ~changed
    return {
        "position": np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape),
        "modality": np.ones(ids.shape, dtype=np.int8),
        "token_class": token_class,
        "vocabulary_id": ids.astype(np.int32),
        "word": word,
        "patch": none,
        "energy": none.astype(np.float32) * np.nan,
        "clean": clean,
    }


@torch.no_grad()
def patch_energy(image: Tensor, side: int) -> Tensor:
    """float32 (batch patches): root mean square of the luminance's gradient over each patch.

    Args:
        image: float (batch 3 height width) as networks read it, from -1 to 1.
        side: patches in a row and in a column.
    """
    luminance = (image.float() + 1) / 2
    luminance = (luminance * luminance.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1)
    down = luminance.diff(dim=1, append=luminance[:, -1:])
    right = luminance.diff(dim=2, append=luminance[:, :, -1:])
    square = (down.square() + right.square())[:, None]
    size = image.shape[-1] // side
    return torch.nn.functional.avg_pool2d(square, size).flatten(1).sqrt()
