"""A trained decoder and its tokenizer: how likely texts are, and texts that they write."""

import math
from collections.abc import Callable, Sequence

import torch

from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.likelihood import Likelihood, Perplexity, encoded, likelihoods
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.sampling import Sampling, sample

AT_A_TIME = 32
"""Windows or texts that go through the network together, unless a caller says otherwise."""
ROUND = 32
"""Tokens that are written before it is asked whether a text has come to a stop."""


class LanguageModel:
    """What a decoder says about texts. Each document opens after `</s>`, as in training.

    Args:
        net: in evaluation mode, on its device.
        tokenizer: that it was trained with.
        source: where it comes from, for errors.
        at_a_time: windows or texts that go through the network together.
    """

    def __init__(self, net: Decoder, tokenizer: Tokenizer, source: str, at_a_time: int = AT_A_TIME):
        if tokenizer.vocab_size > net.vocab_size:
            raise ValueError(
                f"The tokenizer of {source} has {tokenizer.vocab_size} tokens, more than the "
                f"network's vocab_size={net.vocab_size}: it was trained with another one."
            )
        self.net, self.tokenizer, self.at_a_time = net, tokenizer, at_a_time
        self._never = tokenizer.unwritten(net.vocab_size)

    def likelihoods(
        self,
        texts: Sequence[tuple[str, str]],
        advance: Callable[[int], object] = lambda done: None,
    ) -> list[tuple[Likelihood, list[str]]]:
        """How likely each text is after another, (text, after), with what each of its tokens adds.

        Args:
            texts: the pairs; `after` may be empty.
            advance: told of every text that is done, so many at a time.
        """
        cut = [encoded(self.tokenizer, text, after) for text, after in texts]
        found = likelihoods(self.net, cut, self.tokenizer.pad, self.at_a_time, advance=advance)
        return [(one, text.pieces) for one, text in zip(found, cut, strict=True)]

    def perplexity(self, texts: Sequence[str]) -> list[Perplexity]:
        """How well each of these documents is predicted.

        Raises:
            ValueError: a text without tokens.
        """
        found = []
        for text, (one, _) in zip(texts, self.likelihoods([(t, "") for t in texts]), strict=True):
            tokens, num_bytes = len(one.log_prob), len(text.encode())
            if not tokens:
                raise ValueError(f"The text {text!r} has no tokens, so it has no perplexity.")
            nats = -one.total
            per_byte = nats / math.log(2) / num_bytes
            found.append(Perplexity(math.exp(nats / tokens), per_byte, nats, tokens, num_bytes))
        return found

    def write(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
        generator: torch.Generator | None = None,
        read_at_most: int | None = None,
        advance: Callable[[int], object] = lambda done: None,
    ) -> list[str]:
        """What follows each prompt, up to `</s>` or the first of the strings in `stop`.

        Args:
            prompts: may be empty.
            max_tokens: most tokens that are written to each.
            sampling: how tokens are drawn.
            stop: where one of these would come, the text ends.
            generator: on the network's device.
            read_at_most: so many of a prompt's last tokens are read; None: as many as fit.
            advance: told of every text that is done, so many at a time.
        """
        for name, number in (("max_tokens", max_tokens), ("read_at_most", read_at_most)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is 1 or more, got {number}.")
        read = [encoded(self.tokenizer, "", prompt).token for prompt in prompts]
        if read_at_most is not None:
            read = [token[-read_at_most:] for token in read]
        # Those of one length go through the network together.
        order = sorted(range(len(read)), key=lambda number: len(read[number]))
        written = [""] * len(read)
        for at in range(0, len(order), self.at_a_time):
            rows = order[at : at + self.at_a_time]
            own = [read[number] for number in rows]
            texts = self._continued(own, max_tokens, sampling, stop, generator)
            for number, text in zip(rows, texts, strict=True):
                written[number] = text
            advance(len(rows))
        return written

    def _continued(
        self,
        read: list[list[int]],
        max_tokens: int,
        sampling: Sampling,
        stop: Sequence[str],
        generator: torch.Generator | None,
    ) -> list[str]:
        written: list[list[int]] = [[] for _ in read]
        going, done = list(range(len(read))), 0
        while going and done < max_tokens:
            count = min(ROUND, max_tokens - done) if stop else max_tokens
            texts = [read[row] + written[row] for row in going]
            found = sample(
                self.net, texts, count, sampling, self.tokenizer.eos, self._never, generator
            )
            for row, tokens in zip(going, found, strict=True):
                written[row] += tokens
            done += count
            going = [
                row
                for row in going
                if len(written[row]) == done  # it has not ended
                and not _stops(self._text(read[row], written[row]), stop)
            ]
        texts = [self._text(*tokens) for tokens in zip(read, written, strict=True)]
        return [text[: min(_stops(text, stop), default=len(text))] for text in texts]

    def _text(self, read: list[int], written: list[int]) -> str:
        """What the written tokens add: some tokenizers take a blank off where a text begins."""
        before, whole = self.tokenizer.decode(read), self.tokenizer.decode([*read, *written])
        return whole[len(before) :] if whole.startswith(before) else self.tokenizer.decode(written)


def _stops(text: str, stop: Sequence[str]) -> list[int]:
    """Where those of these strings that are in a text begin."""
    return [place for place in map(text.find, stop) if place >= 0]
