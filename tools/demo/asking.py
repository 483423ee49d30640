"""A model that one request at a time is asked of."""

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mhmoe_mm.inference import Model
from mhmoe_mm.loading import LoadedTask
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA
from tools.build_shards.errors import InputError
from tools.demo.collection import Collection
from tools.demo.modes import Asked, Caption, Class, Fill, Mode, Question, Statement
from tools.demo.readings import Readings
from tools.demo.request import Request, RequestError, allowed, megabytes, parsed, pixels_of
from tools.demo.search import FindCaptions, FindImages

MODES: dict[type[Task], type[Mode]] = {
    Captioning: Caption,
    ImageClassification: Class,
    MaskedPretraining: Fill,
    NLVR2: Statement,
    VQA: Question,
}
"""What a model is asked, by its task. Retrieval has more than one mode."""
TASKS: tuple[type[Task], ...] = (*MODES, Retrieval)
ROOM = 256 * 1024
"""Bytes of a request beside its images."""


class Demo:
    """A model and what it is asked on the page.

    Args:
        found: a task of `TASKS`.
        name: what the page calls the model.
        collection: images to search and to begin with.
        captions: what images are compared with.
        most_bytes: of an image.

    Raises:
        InputError: something was given that this task has no use for.
    """

    def __init__(
        self,
        found: LoadedTask,
        name: str,
        collection: Collection | None = None,
        captions: Sequence[str] = (),
        most_bytes: int = 10_000_000,
    ):
        self.name, self.collection, self.most_bytes = name, collection, most_bytes
        self.model = Model(found.task, found.texts, str(found.file))
        self.readings = Readings(found.task, found.texts)
        self._lock = threading.Lock()
        if captions and not isinstance(found.task, Retrieval):
            raise InputError(
                f"--captions are compared with images by a model of Retrieval; this one is of "
                f"{type(found.task).__name__}."
            )
        self.modes = {mode.form.name: mode for mode in self._modes(captions)}

    def _modes(self, captions: Sequence[str]) -> list[Mode]:
        task = self.model.task
        if not isinstance(task, Retrieval):
            return [MODES[type(task)](self.model, self.readings)]
        modes: list[Mode] = [FindCaptions(self.model, self.readings, captions)]
        if self.collection is not None:
            modes.append(FindImages(self.model, self.readings, self.collection))
        return modes

    @property
    def most_body(self) -> int:
        """Bytes of the largest request, its images in base64."""
        images = max(mode.form.images for mode in self.modes.values())
        return ROOM + images * (4 * self.most_bytes // 3 + 4)

    def about(self) -> dict[str, Any]:
        """What the page has to know of the model."""
        task, texts = self.model.task, self.model.texts
        return {
            "task": type(task).__name__,
            "name": self.name,
            "image_size": self.readings.image_size,
            "max_tokens": None if texts is None else texts.max_tokens - 2,
            "modes": [mode.form.plain() for mode in self.modes.values()],
            "layers": self.readings.about(),
            "examples": self.collection is not None,
            "most_bytes": self.most_bytes,
            "too_large": allowed(self.most_bytes),
        }

    def example(self) -> dict[str, Any]:
        """Images and a text to begin with."""
        if self.collection is None:
            raise RequestError("There are no examples: the page was started without --shards.")
        with self._lock:
            return self.collection.example()

    def ask(self, body: bytes) -> dict[str, Any]:
        """The answer to a request, and how long the model took; RequestError says why not."""
        request = parsed(body, self.most_bytes)
        mode = self.modes.get(request.mode)
        if mode is None:
            raise RequestError(
                f"The model is not asked for {request.mode[:40]!r}: it has {', '.join(self.modes)}."
            )
        _check_images(request, mode)
        with self._lock:  # one network, one recorder, and memory for the pixels of one request
            start = time.perf_counter()
            asked = Asked([pixels_of(data) for data in request.images], request.text, request.beams)
            answer = mode(asked)
            seconds = time.perf_counter() - start
        return asdict(answer) | {"seconds": seconds}


def _check_images(request: Request, mode: Mode) -> None:
    wanted, got = mode.form.images, len(request.images)
    if got == wanted or (mode.form.image_optional and got == 0):
        return
    if got < wanted:
        missing = "There is no picture" if wanted == 1 else "There is a picture missing"
        raise RequestError(f"{missing}: drop one, or choose a file.")
    raise RequestError(f"There are {got} pictures, and {wanted} are read.")


def too_large(size: int, most_body: int) -> str:
    """The sentence about a request that is larger than any that is read."""
    return f"The request has {megabytes(size)}, and at most {megabytes(most_body)} are read."
