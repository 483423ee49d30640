"""Searching: the captions that fit an image, and the images that fit a text."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mhmoe_mm.inference import Model
from mhmoe_mm.tasks.retrieval import Retrieval
from tools.demo.collection import Collection
from tools.demo.modes import TOP, Answer, Asked, Form, Mode
from tools.demo.readings import Readings
from tools.demo.request import RequestError, lines_of
from tools.retrieval_gallery import all_finite

_ABOUT = "How likely each is the right one among {}, by the model; together they make 100 %."


class FindCaptions(Mode):
    """Retrieval from image to text: the best of the captions that were typed, or else of a file.

    Args:
        captions: of the file; empty without one.
    """

    form = Form(
        "captions", "Which caption fits?", "Compare", text="Captions, one a line", lines=True
    )  # fmt: skip

    def __init__(self, model: Model, readings: Readings, captions: Sequence[str]):
        super().__init__(model, readings)
        self.captions = list(captions)
        if self.captions:
            self.vectors = all_finite(model.embed_text(self.captions), model.source)
            hint = f"Without any, the {len(self.captions):,} captions of --captions are searched."
            self.form = replace(self.form, text_optional=True, hint=hint)

    def __call__(self, asked: Asked) -> Answer:
        texts = lines_of(asked.text, "captions")
        if not texts and not self.captions:
            raise RequestError("There are no captions: type some, one a line.")
        for text in texts:
            self.check(text, f"caption “{text[:40]}”")
        vectors = self.model.embed_text(texts) if texts else self.vectors
        texts = texts or self.captions
        (image,) = asked.images
        with self.readings.recording() as forwards:
            vector = self.model.embed_image(image)
        cosine, share, best = _best(self.model, vector, vectors)
        found = [texts[i] for i in best]
        with self.readings.recording() as read:
            self.model.embed_text(found)
        return Answer(
            found[0],
            [
                {"text": texts[i], "score": share[i].item(), "note": f"cosine {cosine[i]:.2f}"}
                for i in best
            ],
            _ABOUT.format(f"{len(texts):,} captions"),
            [self.readings.image("image", image, forwards[0], text=found[0])],
            [self.readings.sentence(text, read[0], row) for row, text in enumerate(found)],
        )


class FindImages(Mode):
    """Retrieval from text to image: the best images of a collection."""

    form = Form("images", "Find pictures", "Search", images=0, text="What to look for")

    def __init__(self, model: Model, readings: Readings, collection: Collection):
        super().__init__(model, readings)
        self.collection, self.vectors = collection, collection.embedded(model)

    def __call__(self, asked: Asked) -> Answer:
        self.check(asked.text, "text")
        with self.readings.recording() as forwards:
            vector = self.model.embed_text(asked.text)
        cosine, share, best = _best(self.model, vector, self.vectors)
        pixels = [self.collection.image(number) for number in best]
        with self.readings.recording() as read:
            self.model.embed_image(pixels)
        images = [
            self.readings.image(f"image {number}", pixel, read[0], row, text=f"image {number}")
            for row, (number, pixel) in enumerate(zip(best, pixels, strict=True))
        ]
        return Answer(
            "",
            [
                {"png": image["png"], "text": image["key"], "score": share[number].item(),
                 "note": f"cosine {cosine[number]:.2f}"}
                for number, image in zip(best, images, strict=True)
            ],
            _ABOUT.format(f"{len(self.vectors):,} images"),
            images,
            [self.readings.sentence(asked.text, forwards[0])],
        )  # fmt: skip


def _best(model: Model, query: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """(cosines, probabilities among all candidates, the best ones in order)."""
    assert isinstance(model.task, Retrieval)
    cosine = candidate @ query[0]
    scale = model.task.logit_scale.detach().float().exp().cpu()
    best = cosine.topk(min(TOP, len(cosine))).indices.tolist()
    return cosine, torch.softmax(scale * cosine, dim=0), best
