"""A trained model for single images and texts.

What is given becomes the very batch that an evaluation would make of it, and the task answers as in
an evaluation.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

from mhmoe_mm.batches import Nlvr2Batch, VqaBatch, normalized
from mhmoe_mm.inputs.given import Image, checked_texts, pixels, several
from mhmoe_mm.inputs.pixels import resize, stack_pixels
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA

METHODS: dict[type[Task], tuple[str, ...]] = {
    Captioning: ("caption",),
    ImageClassification: ("classify",),
    NLVR2: ("is_true",),
    Retrieval: ("embed_image", "embed_text", "score", "probabilities"),
    VQA: ("answer",),
}
"""What a model can be asked, by its task."""
AT_A_TIME = 32
"""Rows that go through the network together; longer lists are cut."""

Images = Image | Sequence[Image]
Ranked = list[tuple[str, float]]
Kind = TypeVar("Kind", bound=Task)


class Model:
    """A trained model in evaluation mode; `mhmoe_mm.load` makes one.

    It has the methods of its task and refuses those of others. Each takes one image or text or a
    list of them, and for a list returns one; tensors always have a row for each, on the CPU. Images
    are squeezed to the size of the network, texts cut to `texts.max_tokens`, as in an evaluation.

    Args:
        task: the trained task, in evaluation mode, on its device.
        texts: how texts are read; None where the task reads none.
        source: where it comes from, for errors.
    """

    def __init__(self, task: Task, texts: Texts | None, source: str):
        self.task, self.texts, self.source = task, texts, source
        assert isinstance(task.net, BEiT3)
        self.image_size = task.net.image_embedding.image_size

    def __repr__(self) -> str:
        methods = ", ".join(METHODS[type(self.task)])
        reads = f"images {self.image_size} x {self.image_size}"
        if self.texts is not None:
            reads += f", texts up to {self.texts.max_tokens} tokens"
        return (
            f"Model({type(self.task).__name__} from {self.source} on {self.task.device}: "
            f"{methods}; {reads})"
        )

    def embed_image(self, image: Images) -> Tensor:
        """Vectors of images: float32 (images dim), each of length 1. Retrieval."""
        task = self._as(Retrieval, "embed_image")
        images, _ = several(image, "image")
        vectors = _cut(lambda part: task.embed_image(self._pixels(part))[0], images)
        return torch.cat(vectors).float().cpu()

    def embed_text(self, text: str | Sequence[str]) -> Tensor:
        """Vectors of texts: float32 (texts dim), each of length 1. Retrieval."""
        task = self._as(Retrieval, "embed_text")
        texts = checked_texts(several(text, "text")[0], "text")
        vectors = _cut(lambda part: task.embed_text(*self._tokens(part))[0], texts)
        return torch.cat(vectors).float().cpu()

    def score(self, image: Images, text: str | Sequence[str]) -> Tensor:
        """How alike images and texts are: cosines, float32 (images texts), from -1 to 1.
        Retrieval.
        """
        self._as(Retrieval, "score")
        return self.embed_image(image) @ self.embed_text(text).T

    def probabilities(self, image: Images, text: str | Sequence[str]) -> Tensor:
        """Which of these texts belongs to an image: float32 (images texts), each row adds up to 1.
        Retrieval.

        The softmax of the scores times the model's inverse temperature, as in training.
        """
        task = self._as(Retrieval, "probabilities")
        scale = task.logit_scale.detach().float().exp().cpu()
        return (scale * self.score(image, text)).softmax(dim=1)

    def answer(
        self, image: Images, question: str | Sequence[str], top: int | None = None
    ) -> str | list[str] | Ranked | list[Ranked]:
        """The best answer to a question about an image, or the `top` best with their scores. VQA.

        One image may have several questions and one question several images. A score, from 0 to 1,
        is how right the answer is by the network's sigmoid; the scores of all answers do not add up
        to 1.
        """
        task = self._as(VQA, "answer")
        (images, questions), listed = _paired(image=image, question=question)
        questions = checked_texts(questions, "question")

        def scores(images: list[Image], questions: list[str]) -> Tensor:
            pixel, (token, pad) = self._pixels(images), self._tokens(questions)
            some = len(images)
            unknown = torch.zeros(some, len(task.answers), device=task.device)
            valid = torch.ones(some, dtype=torch.bool, device=task.device)
            names: list[str | int] = list(range(some))
            batch = VqaBatch(pixel, token, pad, unknown, names, valid, [""] * some)
            return task.scores(batch)[0].float().sigmoid()

        found = torch.cat(_cut(scores, images, questions))
        return _chosen(found, task.answers, top, listed)

    def caption(self, image: Images) -> str | list[str]:
        """A caption of an image, as the checkpoint's `decoding` writes it. Captioning."""
        task = self._as(Captioning, "caption")
        images, listed = several(image, "image")
        written = _cut(lambda part: task.caption(self._pixels(part)), images)
        captions = list(chain.from_iterable(written))
        return captions if listed else captions[0]

    def classify(
        self, image: Images, top: int | None = None
    ) -> str | list[str] | Ranked | list[Ranked]:
        """The name of an image's class, or the `top` likeliest with their probabilities, which over
        all classes add up to 1. Classification.

        Classes of a checkpoint that does not know their names are called by their numbers.
        """
        task = self._as(ImageClassification, "classify")
        images, listed = several(image, "image")
        names = task.names or [str(number) for number in range(task.num_classes)]
        logits = _cut(lambda part: task.scores(normalized(self._pixels(part)))[0], images)
        return _chosen(torch.cat(logits).float().softmax(dim=1), names, top, listed)

    def is_true(
        self, left: Images, right: Images, sentence: str | Sequence[str]
    ) -> bool | list[bool]:
        """Whether a sentence is true of two images. NLVR2."""
        task = self._as(NLVR2, "is_true")
        columns, listed = _paired(left=left, right=right, sentence=sentence)
        checked_texts(columns[2], "sentence")

        def judged(left: list[Image], right: list[Image], sentences: list[str]) -> list[bool]:
            pair, (token, pad) = (self._pixels(left), self._pixels(right)), self._tokens(sentences)
            some = len(left)
            label = torch.zeros(some, dtype=torch.long, device=task.device)
            names = [""] * some
            batch = Nlvr2Batch(*pair, token, pad, label, names, label == 0, names)
            return [bool(true) for true in task.scores(batch)[0].argmax(dim=1).tolist()]

        truths = list(chain.from_iterable(_cut(judged, *columns)))
        return truths if listed else truths[0]

    def _as(self, kind: type[Kind], method: str) -> Kind:
        if not isinstance(self.task, kind):
            raise ValueError(
                f"{self.source} holds a model of the task {type(self.task).__name__}, which has "
                f"{', '.join(METHODS[type(self.task)])} but not {method}: load a "
                f"{kind.__name__} checkpoint for that."
            )
        return self.task

    def _pixels(self, images: Sequence[Image]) -> Tensor:
        """uint8 (batch 3 height width) on the task's device; an image given twice is read once."""
        seen = {id(image): image for image in images}
        ready = {name: resize(pixels(image), self.image_size) for name, image in seen.items()}
        return stack_pixels([ready[id(image)] for image in images]).to(self.task.device)

    def _tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and padding (batch seq) on the task's device."""
        assert self.texts is not None, "a task that reads texts is loaded with a tokenizer"
        token, pad = self.texts.batch(texts)
        return token.to(self.task.device), pad.to(self.task.device)


@torch.no_grad()
def _cut(run: Callable[..., Any], *columns: list[Any]) -> list[Any]:
    """What `run` makes of the rows of some columns of one length, so many at a time."""
    starts = range(0, len(columns[0]), AT_A_TIME)
    return [run(*(column[at : at + AT_A_TIME] for column in columns)) for at in starts]


def _paired(**given: Any) -> tuple[list[list[Any]], bool]:
    """(columns of one length, whether there is a list among them): what is one stands in every row.

    Raises:
        ValueError: two lists of different lengths.
    """
    columns = {name: several(value, name) for name, value in given.items()}
    listed = {name: len(column) for name, (column, many) in columns.items() if many}
    if len(set(listed.values())) > 1:
        sizes = " and ".join(f"{size} of {name}" for name, size in listed.items())
        raise ValueError(f"Lists that belong together are of one length, not {sizes}.")
    rows = max(listed.values(), default=1)
    return [column if many else column * rows for column, many in columns.values()], bool(listed)


def _chosen(
    score: Tensor, names: list[str], top: int | None, listed: bool
) -> str | list[str] | Ranked | list[Ranked]:
    """The names with the highest of the scores (rows names), with these where `top` is given."""
    if top is not None and not (type(top) is int and 1 <= top <= len(names)):
        raise ValueError(f"top is a whole number from 1 to {len(names)}, got {top!r}.")
    best = score.topk(top or 1, dim=1)
    value: list[list[float]] = best.values.tolist()
    place: list[list[int]] = best.indices.tolist()
    if top is None:
        firsts = [names[row[0]] for row in place]
        return firsts if listed else firsts[0]
    ranked: list[Ranked] = [
        [(names[i], score) for i, score in zip(*row, strict=True)]
        for row in zip(place, value, strict=True)
    ]
    return ranked if listed else ranked[0]
