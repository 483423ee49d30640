"""Example sentences and images: which are taken, and how a network reads them."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mhmoe_mm.batches import IGNORED, LanguageBatch, PretrainingBatch, normalized
from mhmoe_mm.callbacks.routing_record import RoutingRecorder
from mhmoe_mm.callbacks.routing_rows import (
    IMAGE,
    TEXT,
    RoutedRow,
    Turns,
    different,
    row_of,
    take_rows,
    whole_text,
)
from mhmoe_mm.callbacks.routing_tokens import CLASSES, RoutingChunk, Samples, chunk_of, samples_of
from mhmoe_mm.inputs.spelling import SPECIAL, Spelling
from mhmoe_mm.models.caption_reader import caption_visible
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.retrieval import Retrieval
from tools.expert_report.contents import Image, ImageStep, Sentence, Token

END = "</s>"
"""The piece that ends a text."""


class Example(NamedTuple):
    """A row of a batch, as it was before anything was masked."""

    pixel: Tensor | None
    """uint8 (3 height width)."""
    ids: tuple[int, ...]
    """Of the text, without padding."""
    key: str
    task: str
    language: str
    answer_type: str


class Picker:
    """Takes rows from batches until there are enough of every kind.

    Args:
        sentences, images: how many at most.
        end: the id that ends a document, where texts are rows of a stream.
    """

    def __init__(self, sentences: int, images: int, end: int | None):
        self.sentences, self.images, self.end = sentences, images, end
        self._turns: Turns[Example] = Turns(1 + max(sentences, images) // 3)

    def see(self, batch: Any, task: Task) -> None:
        """Take what is wanted of a batch."""
        parts = [batch]
        if isinstance(batch, PretrainingBatch):
            parts = [part for part in (batch.pair, batch.text, batch.image) if part is not None]
        for part in parts:
            pixel = getattr(part, "pixel", getattr(part, "left", None))
            token = getattr(part, "token", None)
            if isinstance(part, LanguageBatch):
                self._see_stream(part, task)
                continue
            rows = len(pixel if pixel is not None else token)
            about = samples_of(part, task, rows, pixel is not None, token is not None)
            for row in range(rows):
                if len(self._turns) >= 4 * max(self.sentences, self.images):
                    return
                ids = () if token is None else self._ids(part, row)
                kind = (about.task[row], about.language[row], about.answer_type[row])
                self._take(None if pixel is None else pixel[row], ids, about.key[row], kind)

    def _ids(self, part: Any, row: int) -> tuple[int, ...]:
        token = part.token[row]
        target = getattr(part, "target", None)
        if isinstance(target, Tensor) and target.shape == part.token.shape:
            token = torch.where(target[row] == IGNORED, token, target[row])
        return tuple(token[~part.pad[row]].tolist())

    def _see_stream(self, batch: LanguageBatch, task: Task) -> None:
        for row, key in enumerate(batch.key):
            if batch.valid[row]:
                ids = batch.token[row].tolist()
                kind = (type(task).__name__, batch.languages[int(batch.language[row])], "")
                self._take(None, tuple(ids[whole_text(ids, self.end)]), key, kind)

    def _take(
        self, pixel: Tensor | None, ids: tuple[int, ...], key: str, kind: tuple[str, str, str]
    ) -> None:
        if self._turns.wants(kind, key):
            self._turns.take(Example(pixel, ids, key, *kind), kind, key)

    def chosen(self) -> tuple[list[Example], list[Example]]:
        """(sentences, images), each kind in turn."""
        ordered = self._turns.in_turn()
        texts = [one for one in ordered if one.ids]
        images = [one for one in ordered if one.pixel is not None]
        return texts[: self.sentences], images[: self.images]


class RowPicker:
    """Takes rows of recorded routing likewise.

    Args:
        sentences, images: how many at most.
        pieces: what each id spells, as in `RoutingMeta`; without them there are no sentences.
    """

    def __init__(self, sentences: int, images: int, pieces: Sequence[str]):
        self.most = {TEXT: sentences if pieces else 0, IMAGE: images}
        self._turns = {part: Turns[RoutedRow](1 + most // 3) for part, most in self.most.items()}
        self._end = list(pieces).index(END) if END in pieces else None

    def see(self, chunk: RoutingChunk) -> None:
        """Take what is wanted of a forward."""
        for part, turns in self._turns.items():
            take_rows(turns, chunk, part, self._end, 4 * self.most[part])

    def chosen(self) -> tuple[list[RoutedRow], list[RoutedRow]]:
        """(sentences, images), each kind in turn."""
        texts, images = (self._turns[part].in_turn() for part in (TEXT, IMAGE))
        return texts[: self.most[TEXT]], images[: self.most[IMAGE]]


@torch.no_grad()
def read(task: Task, examples: Sequence[Example], spelling: Spelling | None) -> list[RoutedRow]:
    """How each example is read; of a dual encoder, the image alone, then the text alone."""
    recorder = RoutingRecorder(task.net)
    found = []
    with recorder.recording():
        for one in examples:
            _read(task, one)
            samples = Samples([one.key], [one.task], [one.language], [one.answer_type])
            for forward in recorder.take():
                found.append(row_of(chunk_of(forward, samples, None, spelling), 0))
    return found


def _read(task: Task, one: Example) -> None:
    device = next(task.parameters()).device
    token = torch.tensor([one.ids], device=device) if one.ids else None
    if one.pixel is None:
        assert token is not None
        decoder = not hasattr(task.net, "image_embedding")
        task.net(token) if decoder else task.net(None, token)
        return
    image = normalized(one.pixel[None].to(device))
    if isinstance(task, Retrieval) and token is not None:
        task.net(image, None)
        task.net(None, token)
        return
    visible = None
    if isinstance(task, Captioning) and token is not None:
        split = 1 + task.net.image_embedding.num_patches
        visible = caption_visible(split, token.shape[1], device)
    task.net(image, token, visible=visible)


def sentence(row: RoutedRow, pieces: Sequence[str], layers: dict[str, int]) -> Sentence:
    """A row's text, token by token.

    Args:
        row: of recorded routing, with a text.
        pieces: what each id spells.
        layers: every layer's number of experts.
    """
    places = row.part(TEXT)
    experts = [row.experts_of(places, name) for name in layers]
    counts = [
        None if found is None else different(found, number)
        for found, number in zip(experts, layers.values(), strict=True)
    ]
    tokens = tuple(
        Token(
            text=pieces[row.tokens.vocabulary_id[place]],
            word=int(row.tokens.word[place]),
            token_class=CLASSES[row.tokens.token_class[place]],
            experts=tuple(() if found is None else _nested(found[i]) for found in experts),
            diversity=tuple(None if count is None else int(count[i]) for count in counts),
        )
        for i, place in enumerate(places)
    )
    return Sentence(row.key, row.task, row.language, tokens)


def image(
    row: RoutedRow, text: str, layers: dict[str, int], steps: Sequence[ImageStep] = ()
) -> Image:
    """A row's image with what its patches were read by."""
    assert row.pixel is not None
    places = row.part(IMAGE)
    experts = [row.experts_of(places, name) for name in layers]
    return Image(
        key=row.key,
        text=text,
        png=_png(row.pixel),
        width=row.pixel.shape[2],
        height=row.pixel.shape[1],
        rows=row.grid[0],
        columns=row.grid[1],
        energy=tuple(row.tokens.energy[places].tolist()),
        experts=tuple(() if found is None else _nested(found) for found in experts),
        diversity=tuple(
            () if found is None else tuple(different(found, number).tolist())
            for found, number in zip(experts, layers.values(), strict=True)
        ),
        steps=tuple(steps),
    )


def image_step(row: RoutedRow, layers: dict[str, int], step: int) -> ImageStep:
    """How one image was read at a checkpoint."""
    found = row.diversity(row.part(IMAGE), layers)
    return ImageStep(step, () if found is None else tuple(found.round(4).tolist()))


def text_of(row: RoutedRow, pieces: Sequence[str]) -> str:
    """What a row's tokens spell, special ones left out."""
    places = [at for at in row.part(TEXT) if row.tokens.token_class[at] != SPECIAL]
    return "".join(pieces[row.tokens.vocabulary_id[at]] for at in places).strip()


def _nested(array: np.ndarray) -> Any:
    """An array as tuples."""
    if array.ndim == 1:
        return tuple(array.tolist())
    return tuple(_nested(part) for part in array)


def _png(pixel: np.ndarray) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixel.transpose(1, 2, 0)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
