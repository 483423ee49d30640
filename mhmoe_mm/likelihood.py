"""How likely a network finds texts, token by token, each with what the network can read before it.

A text that is longer than the network's longest one is cut into windows, as lm-evaluation-harness
cuts it, so that every token is predicted exactly once.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from mhmoe_mm.inputs.texts import stack_tokens
from mhmoe_mm.inputs.tokenization import Tokenizer
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.vocabulary_loss import CHUNK, token_losses


class Window(NamedTuple):
    """A part of a text that goes through the network at once: tokens from `start` up to `end`, of
    which those from `first` on are predicted.
    """

    start: int
    first: int
    end: int


class Encoded(NamedTuple):
    """A text as tokens, after what is known before it."""

    token: list[int]
    """All of them, behind the token that opens a document."""
    known: int
    """How many of them are given; the others are the text's own."""
    pieces: list[str]
    """What each of the text's own tokens adds to it."""


class Likelihood(NamedTuple):
    """How likely a text's own tokens are."""

    log_prob: list[float]
    """Of every token, in nats."""
    likeliest: list[bool]
    """Whether no other token was likelier."""

    @property
    def total(self) -> float:
        """Log-probability of the text."""
        return math.fsum(self.log_prob)


class Perplexity(NamedTuple):
    """How well a text is predicted."""

    perplexity: float
    """`e^(nats / tokens)`; depends on how the tokenizer cuts."""
    bits_per_byte: float
    """May be compared between tokenizers."""
    nats: float
    tokens: int
    num_bytes: int
    """UTF-8 bytes of the text."""


def encoded(tokenizer: Tokenizer, text: str, after: str = "") -> Encoded:
    """A text after another, cut into tokens as one.

    A token that begins in `after` and ends in the text is the text's own, as a word with the blank
    before it is for many tokenizers. A document opens after `</s>`, as in training.
    """
    token, ends = tokenizer.encode_whole(after + text)
    known = next((i for i, end in enumerate(ends) if end > len(after)), len(ends))
    pieces, read = [], len(after)
    for end in ends[known:]:
        pieces.append((after + text)[read:end])
        read = max(read, end)
    if pieces:
        pieces[-1] += (after + text)[read:]
    return Encoded([tokenizer.eos, *token], 1 + known, pieces)


def windows(known: int, total: int, longest: int) -> list[Window]:
    """How tokens from `known` on, of `total`, are predicted by a network that reads `longest`.

    If those to predict fit into one window, so does as much as there is room for of what is known.
    Otherwise windows follow each other; the last reaches back as far as there is room. Of what is
    known, the first keeps half a window at most.
    """
    if total - known <= longest:
        return [Window(max(0, total - 1 - longest), known, total)] if known < total else []
    start = max(0, known - max(1, longest // 2))
    found = [Window(start, known, start + longest + 1)]
    while (first := found[-1].end) < total:
        end = min(first + longest, total)
        found.append(Window(end - 1 - longest, first, end))
    return found


@torch.no_grad()
def likelihoods(
    net: Decoder,
    texts: Sequence[Encoded],
    fill: int,
    at_a_time: int,
    chunk: int = CHUNK,
    advance: Callable[[int], object] = lambda done: None,
) -> list[Likelihood]:
    """How likely every text is, in the order given.

    Args:
        net: in evaluation mode.
        texts: what is read and predicted.
        fill: the token that fills rows up; it is seen by no other and goes to no expert.
        at_a_time: windows that go through the network together, the longest first.
        chunk: tokens whose scores over the vocabulary exist together.
        advance: told of every text that is done, so many at a time.
    """
    cut = [windows(text.known, len(text.token), net.max_text) for text in texts]
    left = [len(several) for several in cut]
    advance(left.count(0))
    parts = [(number, window) for number, several in enumerate(cut) for window in several]
    parts.sort(key=lambda part: part[1].start - part[1].end)
    found: dict[tuple[int, Window], Likelihood] = {}
    for at in range(0, len(parts), at_a_time):
        batch = parts[at : at + at_a_time]
        rows = [(texts[number].token, window) for number, window in batch]
        found |= zip(batch, _predicted(net, rows, fill, chunk), strict=True)
        for number, _ in batch:
            left[number] -= 1
        advance(sum(left[number] == 0 for number in {number for number, _ in batch}))
    return [
        Likelihood(
            [value for window in several for value in found[number, window].log_prob],
            [value for window in several for value in found[number, window].likeliest],
        )
        for number, several in enumerate(cut)
    ]


def _predicted(
    net: Decoder, rows: list[tuple[list[int], Window]], fill: int, chunk: int
) -> list[Likelihood]:
    """What is found in windows of texts that go through the network together."""
    device = net.output_weight.device
    read = [token[window.start : window.end - 1] for token, window in rows]
    token, pad = stack_tokens(read, fill, net.max_text)
    # Of what is read, the last tokens are asked for the next one.
    asked = torch.tensor([window.first - window.start - 1 for _, window in rows])
    wanted = ~pad & (torch.arange(token.shape[1]) >= asked[:, None])
    target = [value for token, window in rows for value in token[window.first : window.end]]
    hidden = net(token.to(device), keep=~pad.to(device)).hidden[wanted.to(device)]
    nats, right = token_losses(hidden, net.output_weight, torch.tensor(target).to(device), chunk)
    sizes = [window.end - window.first for _, window in rows]
    each = zip(nats.cpu().split(sizes), right.cpu().split(sizes), strict=True)
    return [Likelihood((-nats).tolist(), right.tolist()) for nats, right in each]
