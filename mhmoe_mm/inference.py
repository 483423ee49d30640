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
from mhmoe_mm.inputs.given import Image, check_number, checked_texts, paired, pixels, several
from mhmoe_mm.inputs.pixels import resize, stack_pixels
from mhmoe_mm.inputs.texts import Texts
from mhmoe_mm.language_model import AT_A_TIME, LanguageModel
from mhmoe_mm.likelihood import Perplexity
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.sampling import Sampling
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.language_modeling import LanguageModeling
from mhmoe_mm.tasks.nlvr2 import NLVR2
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA

METHODS: dict[type[Task], tuple[str, ...]] = {
    Captioning: ("caption",),
    ImageClassification: ("classify",),
    LanguageModeling: ("generate", "log_likelihood", "perplexity"),
    NLVR2: ("is_true",),
    Retrieval: ("embed_image", "embed_text", "score", "probabilities"),
    VQA: ("answer",),
}
"""What a model can be asked, by its task."""
Images = Image | Sequence[Image]
Ranked = list[tuple[str, float]]
Tokens = list[tuple[str, float]]
Kind = TypeVar("Kind", bound=Task)


class Model:
    """A trained model in evaluation mode; `mhmoe_mm.load` makes one.

    It has the methods of its task and refuses those of others. Each takes one image or text or a
    list of them, and for a list returns one; tensors always have a row for each, on the CPU. Images
    are squeezed to the size of the network, texts about them cut to `texts.max_tokens`, as in an
    evaluation. A language model reads texts of any length.

    Args:
        task: the trained task, in evaluation mode, on its device.
        texts: how texts are read; None where the task reads none.
        source: where it comes from, for errors.
    """

    def __init__(self, task: Task, texts: Texts | None, source: str):
        self.task, self.texts, self.source = task, texts, source
        if isinstance(task, LanguageModeling):
            assert texts is not None, "a task that reads texts is loaded with a tokenizer"
            self.language = LanguageModel(task.net, texts.tokenizer, source)
            self._reads = f"texts, {task.net.max_text} tokens at a time"
            return
        assert isinstance(task.net, BEiT3)
        self.image_size = task.net.image_embedding.image_size
        self._reads = f"images {self.image_size} x {self.image_size}"
        if texts is not None:
            self._reads += f", texts up to {texts.max_tokens} tokens"

    def __repr__(self) -> str:
        methods = ", ".join(METHODS[type(self.task)])
        return (
            f"Model({type(self.task).__name__} from {self.source} on {self.task.device}: "
            f"{methods}; {self._reads})"
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
        (images, questions), listed = paired(image=image, question=question)
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
        columns, listed = paired(left=left, right=right, sentence=sentence)
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

    def generate(
        self,
        prompt: str | Sequence[str],
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str | list[str]:
        """What the model writes after a prompt, which may be empty. Language modelling.

        It ends at `</s>`, after `max_tokens`, or where one of the strings in `stop` would come. The
        temperature 0 takes the likeliest token each time; `top_k` draws among so many of the
        likeliest, `top_p` among the fewest that are so probable together. The same `seed` draws the
        same for the same prompts. Of what the network cannot read at once, it reads the end.
        """
        self._as(LanguageModeling, "generate")
        given, listed = several(prompt, "prompt")
        prompts = checked_texts(given, "prompt")
        check_number(max_tokens, "max_tokens", whole=True)
        check_number(temperature, "temperature")
        check_number(0 if top_k is None else top_k, "top_k", whole=True)
        check_number(0 if top_p is None else top_p, "top_p")
        check_number(0 if seed is None else seed, "seed", whole=True)
        if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop is a list of strings that are not empty, got {stop!r}.")
        generator = None
        if seed is not None:
            generator = torch.Generator(self.task.device).manual_seed(seed)
        sampling = Sampling(temperature, top_k, top_p)
        written = self.language.write(prompts, max_tokens, sampling, stop, generator)
        return written if listed else written[0]

    def log_likelihood(
        self, text: str | Sequence[str], after: str | Sequence[str] = "", by_token: bool = False
    ) -> float | list[float] | Tokens | list[Tokens]:
        """The log-probability of a text as what follows another, in nats. Language modelling.

        One text may follow several others, and several one. A text without one before it opens a
        document. With `by_token`, a list of what each token adds to the text and its
        log-probability.
        """
        self._as(LanguageModeling, "log_likelihood")
        (texts, others), listed = paired(text=text, after=after)
        checked_texts(texts, "text")
        checked_texts(others, "text before it")
        found = self.language.likelihoods(list(zip(texts, others, strict=True)))
        if by_token:
            tokens = [list(zip(pieces, one.log_prob, strict=True)) for one, pieces in found]
            return tokens if listed else tokens[0]
        totals = [one.total for one, _ in found]
        return totals if listed else totals[0]

    def perplexity(self, text: str | Sequence[str]) -> Perplexity | list[Perplexity]:
        """How well a text is predicted, each a document of its own. Language modelling.

        Of a text that is longer than the network reads at once, each part has the token before it,
        and the last one as many as there is room for; every token counts once.
        """
        self._as(LanguageModeling, "perplexity")
        texts, listed = several(text, "text")
        found = self.language.perplexity(checked_texts(texts, "text"))
        return found if listed else found[0]

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
