"""A trained language model as lm-evaluation-harness asks it: log-likelihoods and written texts.

What is asked goes through the library's own likelihoods and sampling, the longest requests first.
Every text opens a document: it is read after `</s>`, as in training, also where the context is
empty.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs

from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.language_model import LanguageModel
from mhmoe_mm.likelihood import Encoded, Likelihood, encoded, likelihoods
from mhmoe_mm.models.sampling import Sampling
from tools.build_shards.progress import ProgressBar

MAX_GEN_TOKS = 256
"""Tokens that are written where a task names no number, as by the harness's own models."""
ONE_BEAM = {"num_beams": 1}
"""What tasks set besides, to what is done here anyway."""


class Writing(NamedTuple):
    """How a task wants texts written."""

    max_tokens: int
    sampling: Sampling
    stop: list[str]


class HarnessModel(LM):
    """A language model that the harness can ask.

    Args:
        model: `mhmoe_mm.load(...).language`, or one with another `at_a_time`.
        source: where it comes from; stands in the results.
    """

    def __init__(self, model: LanguageModel, source: str):
        super().__init__()
        self.model, self.source = model, source
        self._device = model.net.output_weight.device
        self.tokens = 0
        """Tokens of all requests until now."""
        self.unknown = 0
        """How many of them are `<unk>`."""

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, text): the text's log-probability in nats, and whether each of its
        tokens is the likeliest.
        """
        cut = [after_context(self.model.tokenizer, *request.args) for request in requests]
        for request, one in zip(requests, cut, strict=True):
            if not one.pieces:
                raise ValueError(
                    f"The task {request.task_name} asks how likely {request.args[1]!r} is, which "
                    "has no tokens: no choice and no target may be empty."
                )
        found = self._likelihoods(cut, "log-likelihoods")
        return [(one.total, all(one.likeliest)) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """The log-probability of each (text,) as a document, every token predicted once."""
        cut = [encoded(self.model.tokenizer, *request.args) for request in requests]
        return [one.total for one in self._likelihoods(cut, "documents")]

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What is written after each (context, generation arguments).

        As by the harness's own models, of a context only so much is read that the text fits behind
        it. Where `max_gen_toks` leaves no room at all, the context's end is read and the network
        reads on in windows.
        """
        alike: defaultdict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[1], sort_keys=True)].append(number)
        written = [""] * len(requests)
        with ProgressBar("texts written", len(requests), unit="requests") as bar:
            for numbers in alike.values():
                prompts = [requests[number].args[0] for number in numbers]
                for prompt in prompts:
                    self._count(self.model.tokenizer.encode_whole(prompt)[0])
                wanted = writing(requests[numbers[0]].args[1])
                room = self.model.net.max_text - wanted.max_tokens
                texts = self.model.write(
                    prompts, *wanted, read_at_most=room if room > 0 else None, advance=bar.advance
                )
                for number, text in zip(numbers, texts, strict=True):
                    written[number] = text
        return written

    def get_model_info(self) -> dict[str, Any]:
        """What the results say about the model."""
        return {
            "model": self.source,
            "model_num_parameters": sum(weight.numel() for weight in self.model.net.parameters()),
            "max_length": self.model.net.max_text,
            "tokenizer_sha256": self.model.tokenizer.sha256,
            "tokens": self.tokens,
            "unknown_tokens": self.unknown,
        }

    def _likelihoods(self, cut: Sequence[Encoded], label: str) -> list[Likelihood]:
        for one in cut:
            self._count(one.token)
        fill, at_a_time = self.model.tokenizer.pad, self.model.at_a_time
        with ProgressBar(label, len(cut), unit="requests") as bar:
            return likelihoods(self.model.net, cut, fill, at_a_time, advance=bar.advance)

    def _count(self, token: list[int]) -> None:
        self.tokens += len(token)
        self.unknown += token.count(self.model.tokenizer.unk)


def after_context(tokenizer: Tokenizer, context: str, text: str) -> Encoded:
    """A text after its context, in tokens.

    Blanks at the end of the context count as the text's own, as the harness has it: most tokenizers
    join them to the word that follows.
    """
    bare = context.rstrip()
    return encoded(tokenizer, context[len(bare) :] + text, bare)


def writing(given: Mapping[str, Any]) -> Writing:
    """How texts are written by the generation arguments of a task.

    Raises:
        ValueError: one of them is not known here.
    """
    asked: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), MAX_GEN_TOKS))
    stop = [text for text in asked.pop("until") if text]
    max_tokens = asked.pop("max_gen_toks")
    drawn = asked.pop("do_sample")
    temperature = asked.pop("temperature", 1.0)
    top_k, top_p = asked.pop("top_k", None), asked.pop("top_p", None)
    if unknown := {name: value for name, value in asked.items() if ONE_BEAM.get(name) != value}:
        listed = ", ".join(f"{name}={value}" for name, value in unknown.items())
        raise ValueError(
            f"A task wants texts written with {listed}, which is not done here; there are until, "
            "max_gen_toks, do_sample, temperature, top_k and top_p."
        )
    # The harness's models take a top_k of 0 or less as none.
    most = None if top_k is None or top_k <= 0 else int(top_k)
    return Writing(max_tokens, Sampling(float(temperature) if drawn else 0, most, top_p), stop)
