"""A small causal decoder, and rows of texts for it in the shape that data modules deliver."""

from functools import partial

import torch

from mhmoe_mm.batches import IGNORED, LanguageBatch
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.moe import GeluExperts, MHMoE, TopKRouter

VOCAB, SEQ, EXPERTS = 43, 13, 5
LANGUAGES = ("cs", "de", "en")


def small_decoder(vocab_size: int = VOCAB, max_text: int = SEQ, num_layers: int = 2) -> Decoder:
    sparse = partial(
        MHMoE,
        num_heads=2,
        num_experts=EXPERTS,
        router=TopKRouter,
        experts=partial(GeluExperts, hidden=13),
    )
    dense = partial(GeluFFN, hidden=29)
    return Decoder(vocab_size, 28, num_layers, 2, max_text, dense, sparse)


def rows_of_text(n: int, seed: int = 0) -> LanguageBatch:
    """Rows of two or three documents each; a last target that is missing, and languages in turn."""
    draw = torch.Generator().manual_seed(seed)
    stream = torch.randint(5, VOCAB, (n, SEQ + 1), generator=draw)
    document = (torch.rand(n, SEQ, generator=draw) < 0.15).cumsum(dim=1)
    target = stream[:, 1:].clone()
    target[::2, -1] = IGNORED
    num_bytes = torch.randint(SEQ, 5 * SEQ, (n,), generator=draw)
    names = [f"texts/{seed}/{number}" for number in range(n)]
    valid = torch.ones(n, dtype=torch.bool)
    language = torch.arange(n) % len(LANGUAGES)
    return LanguageBatch(
        stream[:, :-1], target, document, num_bytes, language, LANGUAGES, valid, names
    )
