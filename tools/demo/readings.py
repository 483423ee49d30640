"""Which experts read every patch and word while a model answered, as the page draws it.

The page has the form of an expert report on one run (`tools.expert_report.contents`), with the
weights of the experts beside their numbers.
"""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from mhmoe_mm.callbacks.routing_file import pieces_of
from mhmoe_mm.callbacks.routing_record import Forward, RoutingRecorder
from mhmoe_mm.callbacks.routing_rows import IMAGE, TEXT, RoutedRow, row_of
from mhmoe_mm.callbacks.routing_tokens import Samples, chunk_of
from mhmoe_mm.inputs.pixels import resize
from mhmoe_mm.inputs.spelling import Spelling
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.moe.sparse_layers import described
from mhmoe_mm.tasks.base import Task
from tools.expert_report import examples

SHOWN = 384
"""Pixels of the longer side of an image on the page, at most."""


class Readings:
    """Records what experts read, and tells it.

    Args:
        task: in evaluation mode; its network may be dense.
        texts: how texts are read; None where the task reads none.
    """

    def __init__(self, task: Task, texts: Texts | None):
        assert isinstance(task.net, BEiT3)
        self.task, self.image_size = task, task.net.image_embedding.image_size
        self.layers = described(task.net)
        self._sizes = {layer.name: layer.num_experts for layer in self.layers}
        self._recorder = RoutingRecorder(task.net)
        self._spelling = Spelling(texts.tokenizer) if texts else None
        self._pieces = pieces_of(self._spelling)

    @contextmanager
    def recording(self) -> Iterator[list[Forward]]:
        """Record what runs inside; afterwards the list has its forwards in order."""
        found: list[Forward] = []
        try:
            with self._recorder.recording():
                yield found
        finally:
            found += self._recorder.take()

    def about(self) -> list[dict[str, Any]]:
        """The sparse layers in order; empty for a dense network."""
        return [
            {
                "name": layer.name, "block": layer.block, "branch": layer.branch,
                "num_experts": layer.num_experts, "num_heads": layer.num_heads,
            }
            for layer in self.layers
        ]  # fmt: skip

    def image(
        self, key: str, pixel: Tensor, forward: Forward, row: int = 0, text: str = ""
    ) -> dict[str, Any]:
        """An image, uint8 (3 height width) as it was given, with what its patches were read by."""
        seen = resize(pixel, self.image_size)
        own = self._row(key, forward, row)._replace(pixel=seen.numpy())
        one = examples.image(own, text, self._sizes)
        weights = [_weights(own, name, own.part(IMAGE)) for name in self._sizes]
        shown = thumbnail(pixel, SHOWN)
        size = {"png": png(shown), "width": shown.width, "height": shown.height}
        return one._asdict() | size | {"weights": weights}

    def sentence(self, key: str, forward: Forward, row: int = 0) -> dict[str, Any]:
        """A text, token by token."""
        own = self._row(key, forward, row)
        one = examples.sentence(own, self._pieces, self._sizes)
        weights = [_weights(own, name, own.part(TEXT)) for name in self._sizes]
        tokens = [
            token._asdict() | {"weights": [layer[place] if layer else [] for layer in weights]}
            for place, token in enumerate(one.tokens)
        ]
        return one._asdict() | {"tokens": tokens}

    def _row(self, key: str, forward: Forward, row: int) -> RoutedRow:
        unknown = [""] * len(forward.real)
        samples = Samples([key] * len(unknown), unknown, unknown, unknown)
        return row_of(chunk_of(forward, samples, None, self._spelling), row)


def _weights(row: RoutedRow, layer: str, place: np.ndarray) -> list[Any]:
    """(tokens heads choices); empty where a token does not pass the layer."""
    found = row.weights_of(place, layer)
    return [] if found is None else found.astype(np.float64).round(3).tolist()


def thumbnail(pixel: Tensor, longest: int) -> Image.Image:
    """An image, uint8 (3 height width), no larger than it is shown."""
    image = Image.fromarray(pixel.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((longest, longest))
    return image


def png(image: Image.Image) -> str:
    """A PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
