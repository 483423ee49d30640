"""Captions written by a network: the most probable token each time, or beam search."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.caption_reader import Reader
from mhmoe_mm.models.sampling import barred_tokens, without


class Caption(NamedTuple):
    """A generated caption."""

    token: list[int]
    """Without the start and end tokens."""
    score: float
    """Sum of its tokens' log-probabilities, the end token's among them, over
    `length ** length_penalty`.
    """


@dataclass(frozen=True)
class Decoding:
    """How captions are written."""

    num_beams: int = 3
    """Captions that are followed at a time; 1 takes the most probable token each time."""
    length_penalty: float = 0.6
    """Power of the length that a caption's log-probability is divided by; 0 favours short ones."""
    max_tokens: int = 32
    """Longest caption, start and end token included."""

    def __post_init__(self) -> None:
        if self.num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {self.num_beams}.")
        if self.max_tokens < 2:
            raise ValueError(
                f"max_tokens counts the start token and what follows, so it is at least 2, "
                f"got {self.max_tokens}."
            )

    @property
    def longest(self) -> int:
        """Most tokens after the start token."""
        return self.max_tokens - 1

    def check(self, net: BEiT3) -> None:
        """Refuse captions longer than the network reads."""
        if self.max_tokens > net.text_embedding.max_text:
            raise ValueError(
                f"Captions of max_tokens={self.max_tokens} are longer than the network's "
                f"max_text={net.text_embedding.max_text}: make either fit the other."
            )


@torch.no_grad()
def generate(
    reader: Reader,
    image: Float[Tensor, "batch 3 height width"],
    bos: int,
    eos: int,
    decoding: Decoding = Decoding(),
    never: Collection[int] = (),
    stop: Callable[[bool], bool] = bool,
) -> list[Caption]:
    """The best caption found for every image; tokens in `never` are not written.

    `stop` is told after every token whether all captions are found, and says whether to stop. Ranks
    that share a network out must go on until all of them have theirs; captions stay as they are.
    """
    decoding.check(reader.net)
    write = _greedy if decoding.num_beams == 1 else _beams
    return write(reader, image, bos, eos, decoding, barred_tokens(never, image.device), stop)


def _log_probs(score: Tensor, barred: Tensor) -> Tensor:
    return without(score, barred).log_softmax(dim=1)


def _greedy(
    reader: Reader,
    image: Tensor,
    bos: int,
    eos: int,
    decoding: Decoding,
    barred: Tensor,
    stop: Callable[[bool], bool],
) -> list[Caption]:
    token = torch.full((len(image),), bos, device=image.device)
    log_prob = _log_probs(reader.start(image, token), barred)
    written, total, done = [], torch.zeros(len(image), device=image.device), token != bos
    while True:
        best, token = log_prob.max(dim=1)
        total, token = total + best.masked_fill(done, 0), token.masked_fill(done, eos)
        written.append(token)
        done = done | (token == eos)
        if len(written) == decoding.longest or stop(bool(done.all())):
            break
        log_prob = _log_probs(reader.step(token), barred)
    rows = torch.stack(written, dim=1).tolist()
    return [
        _caption(row, score, eos, decoding) for row, score in zip(rows, total.tolist(), strict=True)
    ]


def _caption(written: list[int], total: float, eos: int, decoding: Decoding) -> Caption:
    token = written[: written.index(eos)] if eos in written else written
    length = len(token) + (eos in written)
    return Caption(token, total / length**decoding.length_penalty)


class _Search:
    """Beam search for one image.

    The best `num_beams` unfinished captions are followed. One that ends among the best `num_beams`
    candidates is kept, and the search is settled when none that is followed can become better than
    those kept.
    """

    def __init__(self, eos: int, decoding: Decoding):
        self.eos, self.decoding = eos, decoding
        self.live: list[tuple[float, list[int]]] = [(0.0, [])]
        self.finished: list[Caption] = []

    def advance(self, candidates: list[tuple[float, int, int]]) -> tuple[list[int], list[int]]:
        """Take the best `(log-probability, beam, token)`, best first, of all continuations.

        Returns for every beam which beam it continues, and with which token.
        """
        beams, live, parents, tokens = self.decoding.num_beams, [], [], []
        for rank, (total, beam, token) in enumerate(candidates):
            if total == -torch.inf:
                break
            if token == self.eos:
                if rank < beams:
                    self._finish([*self.live[beam][1], token], total)
            elif len(live) < beams:
                live.append((total, [*self.live[beam][1], token]))
                parents.append(beam)
                tokens.append(token)
        self.live, dead = live, beams - len(live)
        return parents + [0] * dead, tokens + [self.eos] * dead

    def totals(self) -> list[float]:
        """Log-probability of every beam, minus infinity for one that has nothing to follow."""
        dead = self.decoding.num_beams - len(self.live)
        return [total for total, _ in self.live] + [-torch.inf] * dead

    def settled(self) -> bool:
        reach = max(self.totals()) / self.decoding.longest**self.decoding.length_penalty
        full = len(self.finished) == self.decoding.num_beams
        return reach == -torch.inf or (full and self.finished[-1].score >= reach)

    def best(self) -> Caption:
        """Also among the unfinished: the longest that were allowed, or worse than those kept."""
        for total, written in self.live:
            self._finish(written, total)
        return self.finished[0]

    def _finish(self, written: list[int], total: float) -> None:
        self.finished.append(_caption(written, total, self.eos, self.decoding))
        self.finished.sort(key=lambda caption: -caption.score)
        del self.finished[self.decoding.num_beams :]


def _beams(
    reader: Reader,
    image: Tensor,
    bos: int,
    eos: int,
    decoding: Decoding,
    barred: Tensor,
    stop: Callable[[bool], bool],
) -> list[Caption]:
    batch, beams, device = len(image), decoding.num_beams, image.device
    log_prob = _log_probs(reader.start(image, torch.full((batch,), bos, device=device)), barred)
    vocab = log_prob.shape[1]
    reader.reorder(torch.arange(batch, device=device).repeat_interleave(beams))
    log_prob = log_prob.repeat_interleave(beams, dim=0)
    searches = [_Search(eos, decoding) for _ in range(batch)]
    for length in range(1, decoding.max_tokens):
        total = torch.tensor([search.totals() for search in searches], device=device)
        candidates = (total[:, :, None] + log_prob.view(batch, beams, vocab)).flatten(1)
        best, place = candidates.topk(min(2 * beams, candidates.shape[1]), dim=1)
        parents, tokens = [], []
        for row, search in enumerate(searches):
            ranked = [
                (total, at // vocab, at % vocab)
                for total, at in zip(best[row].tolist(), place[row].tolist(), strict=True)
            ]
            parent, token = search.advance(ranked)
            parents += [row * beams + beam for beam in parent]
            tokens += token
        settled = all(search.settled() for search in searches)
        if length == decoding.longest or stop(settled):
            break
        reader.reorder(torch.tensor(parents, device=device))
        log_prob = _log_probs(reader.step(torch.tensor(tokens, device=device)), barred)
    return [search.best() for search in searches]
