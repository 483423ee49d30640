"""Texts written by a decoder, each token drawn from its distribution or the likeliest."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mhmoe_mm.models.attention import Past
from mhmoe_mm.models.causal import check_single_tokens
from mhmoe_mm.models.decoder import Decoder


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        temperature: what scores are divided by; 0 takes the likeliest token each time.
        top_k: draw among the so many likeliest only; None: among all.
        top_p: draw among the fewest likeliest tokens that have this probability together
            (nucleus sampling, https://arxiv.org/abs/1904.09751), the likeliest always among them.
    """

    temperature: int | float = 1.0
    top_k: int | None = None
    top_p: int | float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is 0 or more, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is a number of tokens, 1 or more, got {self.top_k}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is a probability in (0, 1], got {self.top_p}.")

    def probabilities(self, scores: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """What tokens are drawn from; 0 for those that cannot be."""
        scores = scores.float()
        if self.temperature == 0:
            best = scores.argmax(dim=1, keepdim=True)
            return torch.zeros_like(scores).scatter_(1, best, 1.0)
        scores = scores / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[1]:
            best = scores.topk(self.top_k, dim=1).indices
            scores = torch.full_like(scores, -torch.inf).scatter(1, best, scores.gather(1, best))
        probability = scores.softmax(dim=1)
        if self.top_p is not None and self.top_p < 1:
            falling, order = probability.sort(dim=1, descending=True, stable=True)
            before = falling.cumsum(dim=1) - falling
            falling = falling.masked_fill(before >= self.top_p, 0)
            probability = torch.zeros_like(probability).scatter(1, order, falling)
            probability = probability / probability.sum(dim=1, keepdim=True)
        return probability

    def draw(
        self, scores: Float[Tensor, "rows vocab"], generator: torch.Generator | None = None
    ) -> Int[Tensor, " rows"]:
        """One token for each row."""
        if self.temperature == 0:
            return scores.argmax(dim=1)
        return torch.multinomial(self.probabilities(scores), 1, generator=generator)[:, 0]


@torch.no_grad()
def sample(
    net: Decoder,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    sampling: Sampling = Sampling(),
    eos: int | None = None,
    never: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """What the network writes after each prompt, without the prompt and without `eos`.

    Keys and values of what was read are kept. Where a text outgrows the network's longest one, its
    second half is read anew and the rest forgotten; of a longer prompt the end is read.

    Args:
        net: in evaluation mode.
        prompts: one token each or more; those of one length go through the network together.
        max_tokens: at most so many tokens are written.
        sampling: how they are drawn.
        eos: ends a text; None: nothing does.
        never: tokens that are not written.
        generator: on the network's device.

    Raises:
        ValueError: an empty prompt, or a network whose experts depend on other tokens.
    """
    check_single_tokens(net, "Texts cannot be generated")
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError(
            "A prompt has one token or more: begin with `</s>` where there is no text."
        )
    if max_tokens < 0:
        raise ValueError(f"max_tokens is 0 or more, got {max_tokens}.")
    written: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        text = torch.tensor([list(prompts[i]) for i in rows], device=net.output_weight.device)
        found = _continued(net, text, max_tokens, sampling, eos, never, generator)
        for i, tokens in zip(rows, found.tolist(), strict=True):
            written[i] = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return written


def _continued(
    net: Decoder,
    text: Int[Tensor, "rows seq"],
    max_tokens: int,
    sampling: Sampling,
    eos: int | None,
    never: Collection[int],
    generator: torch.Generator | None,
) -> Int[Tensor, "rows new"]:
    """What follows texts of one length; whatever stands behind the first `eos` of a row."""
    start, read, past = text.shape[1], 0, [Past() for _ in net.layers]
    barred = barred_tokens(never, text.device)
    done = torch.zeros(len(text), dtype=torch.bool, device=text.device)
    while text.shape[1] - start < max_tokens and not done.all():
        known = 0 if past[0].key is None else past[0].key.shape[2]
        if known + text.shape[1] - read > net.max_text:
            past = [Past() for _ in net.layers]
            room = net.max_text if known == 0 else max(1, net.max_text // 2)
            read = text.shape[1] - room
        hidden = net(text[:, read:], past=past).hidden[:, -1]
        read = text.shape[1]
        scores = without(net.scores(hidden).float(), barred)
        token = sampling.draw(scores, generator)
        if eos is not None:
            token = torch.where(done, eos, token)
            done = done | (token == eos)
        text = torch.cat([text, token[:, None]], dim=1)
    return text[:, start:]


def without(
    scores: Float[Tensor, "rows vocab"], barred: Int[Tensor, " barred"]
) -> Float[Tensor, "rows vocab"]:
    """The scores, those of the barred tokens at minus infinity."""
    return scores.index_fill(1, barred, -torch.inf) if len(barred) else scores


def barred_tokens(never: Collection[int], device: torch.device) -> Int[Tensor, " barred"]:
    """Tokens that are not written as `without` wants them: made once for a text, not for each of
    its tokens.
    """
    return torch.tensor(sorted(never), dtype=torch.long, device=device)
