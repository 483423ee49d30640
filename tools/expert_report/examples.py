"""Example sentences and images: which are taken, and how a network reads them."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from mhmoe_mm.batches import IGNORED, LanguageBatch, PretrainingBatch, normalized
from mhmoe_mm.callbacks.routing_record import Forward, RoutingRecorder
from mhmoe_mm.callbacks.routing_tokens import CLASSES, patch_energy, samples_of
from mhmoe_mm.inputs.spelling import Spelling
from mhmoe_mm.models.caption_reader import caption_visible
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.retrieval import Retrieval
from tools.expert_report.contents import Image, ImageStep, Sentence, Token
from tools.expert_report.diversity import different


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
        self.found: list[Example] = []
        self._taken: Counter[tuple[str, str, str]] = Counter()
        self._keys: set[str] = set()

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
                if not self._room():
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
            if not batch.valid[row]:
                continue
            ids = batch.token[row].tolist()
            begins = [0] + [i + 1 for i, one in enumerate(ids) if one == self.end]
            ends = [*begins[1:], len(ids)]
            whole = [pair for pair in zip(begins, ends, strict=True) if pair[1] - pair[0] > 3]
            inner = [pair for pair in whole if pair[0] > 0 and pair[1] < len(ids)]
            kind = (type(task).__name__, batch.languages[int(batch.language[row])], "")
            for begin, end in (inner or whole)[:1]:
                self._take(None, tuple(ids[begin:end]), key, kind)

    def _room(self) -> bool:
        return len(self.found) < 4 * max(self.sentences, self.images)

    def _take(
        self, pixel: Tensor | None, ids: tuple[int, ...], key: str, kind: tuple[str, str, str]
    ) -> None:
        most = 1 + max(self.sentences, self.images) // 3
        if key in self._keys or self._taken[kind] >= most:
            return
        self._taken[kind] += 1
        self._keys.add(key)
        self.found.append(Example(pixel, ids, key, *kind))

    def chosen(self) -> tuple[list[Example], list[Example]]:
        """(sentences, images), each kind in turn."""
        turns: dict[tuple[str, str, str], list[Example]] = {}
        for one in self.found:
            turns.setdefault((one.task, one.language, one.answer_type), []).append(one)
        longest = max((len(turn) for turn in turns.values()), default=0)
        ordered = [turn[i] for i in range(longest) for turn in turns.values() if i < len(turn)]
        texts = [one for one in ordered if one.ids]
        images = [one for one in ordered if one.pixel is not None]
        return texts[: self.sentences], images[: self.images]


@torch.no_grad()
def read(task: Task, examples: Sequence[Example]) -> list[Forward]:
    """One forward for each example; of a dual encoder, that of the image alone, then the text's."""
    recorder = RoutingRecorder(task.net)
    found = []
    with recorder.recording():
        for one in examples:
            _read(task, one)
            found.append(recorder.take())
    return [forward for forwards in found for forward in forwards]


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


def sentence(
    one: Example, forward: Forward, spelling: Spelling, layers: dict[str, int]
) -> Sentence:
    """An example's text, token by token; `layers` gives every layer's number of experts."""
    ids = np.array([one.ids])
    words = spelling.words(ids)
    classes = spelling.classes(ids, words)
    experts = [_of_tokens(forward, name, forward.split, len(one.ids)) for name in layers]
    tokens = tuple(
        Token(
            text=spelling.piece(one.ids[place]),
            word=int(words[0, place]),
            token_class=CLASSES[classes[0, place]],
            experts=tuple(_nested(layer[place]) if layer else () for layer in experts),
            diversity=tuple(
                int(different(layer[place][None], num)[0]) if layer else None
                for layer, num in zip(experts, layers.values(), strict=True)
            ),
        )
        for place in range(len(one.ids))
    )
    return Sentence(one.key, one.task, one.language, tokens)


def image(
    one: Example,
    forward: Forward,
    text: str,
    layers: dict[str, int],
    steps: Sequence[ImageStep] = (),
) -> Image:
    """An example's image with what its patches were read by."""
    assert one.pixel is not None
    patches = forward.split - 1
    side = round(patches**0.5)
    experts = [_of_tokens(forward, name, 1, patches) for name in layers]
    stacked = [np.stack(layer) if layer else None for layer in experts]
    return Image(
        key=one.key,
        text=text,
        png=_png(one.pixel),
        width=one.pixel.shape[2],
        height=one.pixel.shape[1],
        rows=side,
        columns=side,
        energy=tuple(patch_energy(normalized(one.pixel[None]), side)[0].tolist()),
        experts=tuple(() if layer is None else _nested(layer) for layer in stacked),
        diversity=tuple(
            () if layer is None else tuple(different(layer, num).tolist())
            for layer, num in zip(stacked, layers.values(), strict=True)
        ),
        steps=tuple(steps),
    )


def image_step(forward: Forward, layers: dict[str, int], step: int) -> ImageStep:
    """How one image was read at a checkpoint."""
    patches = forward.split - 1
    each = [
        different(np.stack(tokens), num)
        for name, num in layers.items()
        if (tokens := _of_tokens(forward, name, 1, patches))
    ]
    return ImageStep(step, tuple(np.mean(each, axis=0).round(4).tolist()))


def _of_tokens(forward: Forward, name: str, start: int, number: int) -> list[np.ndarray]:
    """Experts (heads choices) of tokens from `start` on in a layer; empty where one does not pass.

    One row, none of it padding, so a token's place is its number.
    """
    routing = forward.passed(name, start, number)
    return [] if routing is None else list(routing.expert)


def _nested(array: np.ndarray) -> Any:
    """An array as tuples."""
    if array.ndim == 1:
        return tuple(array.tolist())
    return tuple(_nested(part) for part in array)


def _png(pixel: Tensor) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(pixel.permute(1, 2, 0).cpu().numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
