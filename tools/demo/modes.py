"""What a model can be asked on the page: a class for each kind of question about images given by
the person who asks. Searching collections is in `search.py`.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhmoe_mm.batches import normalized
from mhmoe_mm.inference import Model
from mhmoe_mm.inputs.pixels import resize
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.masked_pretraining import MaskedPretraining
from mhmoe_mm.tasks.vqa import VQA
from tools.demo.readings import Readings
from tools.demo.request import RequestError, check_text
from tools.expert_report import examples

TOP = 5
MASK = "<mask>"
"""What stands for a word that is to be filled in."""


class Asked(NamedTuple):
    """A request whose images are decoded."""

    images: list[Tensor]
    """uint8 (3 height width) each."""
    text: str
    beams: int | None


@dataclass
class Answer:
    """What the page shows."""

    headline: str
    ranked: list[dict[str, Any]] = field(default_factory=list)
    """Best first: `text` or `png`, `score` from 0 to 1, and `note`, a word on the score."""
    about: str = ""
    """What the scores are."""
    images: list[dict[str, Any]] = field(default_factory=list)
    sentences: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Form:
    """What the page asks a person for."""

    name: str
    title: str
    button: str
    images: int = 1
    image_optional: bool = False
    text: str = ""
    """The label of the field of text; empty where there is none."""
    text_optional: bool = False
    lines: bool = False
    """Whether the text has several lines."""
    hint: str = ""
    beams: int | None = None
    """How many are usual; None where there is no choice."""

    def plain(self) -> dict[str, Any]:
        """For the page."""
        return asdict(self)


class Mode(ABC):
    """A kind of question.

    Args:
        model: what is asked.
        readings: records its experts.
    """

    form: Form

    def __init__(self, model: Model, readings: Readings):
        self.model, self.readings = model, readings

    @abstractmethod
    def __call__(self, asked: Asked) -> Answer:
        """The answer; RequestError where there can be none."""

    def check(self, text: str, what: str) -> None:
        """Refuse a text that the model would not read whole."""
        assert self.model.texts is not None
        check_text(text, self.model.texts, what)


class Question(Mode):
    """VQA."""

    form = Form("answer", "Ask about a picture", "Ask", text="Question")

    def __call__(self, asked: Asked) -> Answer:
        self.check(asked.text, "question")
        assert isinstance(self.model.task, VQA)
        (image,), top = asked.images, min(TOP, len(self.model.task.answers))
        with self.readings.recording() as forwards:
            ranked = self.model.answer(image, asked.text, top=top)
        return Answer(
            str(ranked[0][0]),
            [{"text": text, "score": score} for text, score in ranked],
            "How right each answer is, by the model; they do not add up to 100 %.",
            [self.readings.image("image", image, forwards[0], text=asked.text)],
            [self.readings.sentence("question", forwards[0])],
        )


class Caption(Mode):
    """Captioning; the finished caption is read once more to see its experts."""

    form = Form("caption", "Describe a picture", "Describe", beams=1)

    def __init__(self, model: Model, readings: Readings):
        super().__init__(model, readings)
        assert isinstance(model.task, Captioning)
        self.form = replace(self.form, beams=model.task.decoding.num_beams)

    def __call__(self, asked: Asked) -> Answer:
        task, (image,) = self.model.task, asked.images
        assert isinstance(task, Captioning)
        usual = task.decoding
        task.decoding = replace(usual, num_beams=asked.beams or usual.num_beams)
        try:
            caption = self.model.caption(image)
        finally:
            task.decoding = usual
        ids = tuple(task.vocabulary.encode(str(caption), task.net.text_embedding.max_text))
        seen = resize(image, self.model.image_size)
        with self.readings.recording() as forwards:
            examples.read(task, [examples.Example(seen, ids, "caption", "", "", "")], None)
        return Answer(
            str(caption) or "(nothing)",
            images=[self.readings.image("image", image, forwards[0], text=str(caption))],
            sentences=[self.readings.sentence("caption", forwards[0])],
        )


class Class(Mode):
    """Classification."""

    form = Form("classify", "Name a picture", "Name it")

    def __call__(self, asked: Asked) -> Answer:
        (image,), names = asked.images, getattr(self.model.task, "num_classes", 1)
        with self.readings.recording() as forwards:
            ranked = self.model.classify(image, top=min(TOP, names))
        return Answer(
            str(ranked[0][0]),
            [{"text": text, "score": score} for text, score in ranked],
            "Probabilities; those of all classes add up to 100 %.",
            [self.readings.image("image", image, forwards[0])],
        )


class Statement(Mode):
    """NLVR2."""

    form = Form(
        "judge", "Is it true of two pictures?", "Judge", images=2, text="Statement"
    )  # fmt: skip

    def __call__(self, asked: Asked) -> Answer:
        self.check(asked.text, "statement")
        with self.readings.recording() as forwards:
            true = self.model.is_true(*asked.images, asked.text)
        names = ("left", "right")
        return Answer(
            "True" if true else "False",
            images=[
                self.readings.image(name, image, forwards[0], row, text=name)
                for row, (name, image) in enumerate(zip(names, asked.images, strict=True))
            ],
            sentences=[
                self.readings.sentence(f"beside the {name} picture", forwards[0], row)
                for row, name in enumerate(names)
            ],
        )


class Fill(Mode):
    """Masked pretraining: words for the masks of a text, with an image or without."""

    form = Form(
        "fill", "Fill in words", "Fill in", image_optional=True, text="Text", text_optional=True,
        hint=f"Write {MASK} for a word that the model is to guess.",
    )  # fmt: skip

    @torch.no_grad()
    def __call__(self, asked: Asked) -> Answer:
        task = self.model.task
        assert isinstance(task, MaskedPretraining)
        if not asked.images and not asked.text:
            raise RequestError("There is nothing to read: give an image, a text, or both.")
        ids = self._ids(asked.text) if asked.text else None
        image = token = None
        if asked.images:
            seen = resize(asked.images[0], self.model.image_size)
            image = normalized(seen[None].to(task.device))
        if ids is not None:
            token = torch.tensor([ids], device=task.device)
        with self.readings.recording() as forwards:
            encoded = task.net(image, token)
        images = [
            self.readings.image("image", pixel, forwards[0], text=asked.text)
            for pixel in asked.images
        ]
        if ids is None:
            return Answer(
                "The picture was read; without a text there is nothing to fill in.", images=images
            )
        headline, ranked = self._filled(ids, encoded.hidden[0, encoded.split :])
        about = "Probabilities; those of all words of the vocabulary add up to 100 %."
        sentences = [self.readings.sentence("text", forwards[0])]
        return Answer(headline, ranked, about if ranked else "", images, sentences)

    def _ids(self, text: str) -> list[int]:
        texts = self.model.texts
        assert texts is not None
        parts = text.split(MASK)
        ids: list[int] = [texts.tokenizer.bos]
        for number, part in enumerate(parts):
            # A word keeps the blank before it, which is then in the masked token.
            kept = part.rstrip() if number < len(parts) - 1 else part
            if kept.strip():
                check_text(kept, texts._replace(max_tokens=2 + len(text)), "text")
                ids += texts.tokenizer.encode_whole(kept)[0]
            ids.append(texts.tokenizer.mask if number < len(parts) - 1 else texts.tokenizer.eos)
        if len(ids) > texts.max_tokens:
            raise RequestError(
                f"The text has {len(ids) - 2} tokens, and the model reads at most "
                f"{texts.max_tokens - 2}: shorten it."
            )
        return ids

    def _filled(self, ids: list[int], hidden: Tensor) -> tuple[str, list[dict[str, Any]]]:
        """The text with its likeliest words, and the likeliest ones of every mask."""
        task, texts = self.model.task, self.model.texts
        assert isinstance(task, MaskedPretraining)
        assert texts is not None
        words = texts.tokenizer
        masks = [place for place, token in enumerate(ids) if token == words.mask]
        if not masks:
            return f"The text was read; it has no {MASK} to fill in.", []
        score = task.text_head(hidden[masks]).float()
        never = words.unwritten(task.net.vocab_size) | {words.eos}
        score[:, sorted(never)] = -torch.inf
        best = score.softmax(dim=1).topk(min(TOP, len(words.ordinary)), dim=1)
        ranked = [
            {"text": words.decode([token]).strip(), "score": share}
            | ({"note": f"mask {number}"} if len(masks) > 1 else {})
            for number, row in enumerate(zip(*(part.tolist() for part in best), strict=True), 1)
            for share, token in zip(*row, strict=True)
        ]
        filled = list(ids)
        for place, token in zip(masks, best.indices[:, 0].tolist(), strict=True):
            filled[place] = token
        return words.decode(filled), ranked
