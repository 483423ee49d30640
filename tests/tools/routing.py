"""Made-up routing of a small network, as a recorder gives it."""

import numpy as np
import torch

from mhmoe_mm.callbacks.routing_record import LayerRouting
from mhmoe_mm.callbacks.routing_tokens import (
    EDGE_PATCH,
    FLAT_PATCH,
    MODALITIES,
    RoutingChunk,
    Samples,
    Tokens,
)
from mhmoe_mm.inputs.spelling import PUNCTUATION, WHOLE_WORD, WORD_INSIDE, WORD_START
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.moe.sparse_layers import Description

EXPERTS, HEADS, CHOICES, PATCHES, TEXT, ROWS = 7, 3, 2, 4, 5, 11
LAYERS = (
    Description("blocks.0.ffn.image", 0, "image", "MHMoE", EXPERTS, HEADS, "TopKRouter"),
    Description("blocks.0.ffn.text", 0, "text", "MHMoE", EXPERTS, HEADS, "TopKRouter"),
    Description("blocks.1.ffn.fused", 1, "fused", "MHMoE", EXPERTS, HEADS, "TopKRouter"),
)
PIECES = (" a", " ba", "nk", " bank", ".", " see", "s", " us")


def chunk(seed: int, experts: int = EXPERTS) -> RoutingChunk:
    """Pairs of an image of four patches and the text "a ba-nk see ." or " bank a us see ."."""
    random = np.random.default_rng(seed)
    one = [0, 1, 2, 5, 4]
    other = [3, 0, 7, 5, 4]
    texts = np.array([one if row % 2 else other for row in range(ROWS)])
    words = np.array([[0, 1, 1, 2, 3] if row % 2 else [0, 1, 2, 3, 4] for row in range(ROWS)])
    classes = np.array(
        [
            [WHOLE_WORD, WORD_START, WORD_INSIDE, WHOLE_WORD, PUNCTUATION]
            if row % 2
            else [WHOLE_WORD] * 4 + [PUNCTUATION]
            for row in range(ROWS)
        ]
    )
    energy = random.random((ROWS, PATCHES)).astype(np.float32) * 0.04
    none = np.full((ROWS, PATCHES), -1)
    each = np.broadcast_to(np.arange(PATCHES), (ROWS, PATCHES))
    order = np.arange(TEXT) + 0 * texts

    def joined(image, text, kind):
        return np.concatenate([image, text], axis=1).ravel().astype(kind)

    tokens = Tokens(
        sample=np.repeat(np.arange(ROWS, dtype=np.int32), PATCHES + TEXT),
        position=joined(each, order, np.int32),
        modality=joined(0 * each, 0 * texts + 1, np.int8),
        token_class=joined(np.where(energy >= 0.02, EDGE_PATCH, FLAT_PATCH), classes, np.int8),
        vocabulary_id=joined(none, texts, np.int32),
        word=joined(none, words, np.int32),
        patch=joined(each, texts * 0 - 1, np.int32),
        energy=joined(energy, np.full(texts.shape, np.nan), np.float32),
        clean=np.ones(ROWS * (PATCHES + TEXT), dtype=bool),
    )
    languages = ["de" if row % 3 else "en" for row in range(ROWS)]
    samples = Samples([f"{seed}/{i}" for i in range(ROWS)], ["t"] * ROWS, languages, [""] * ROWS)
    layers, loads = {}, {}
    for layer in LAYERS:
        kind = {"image": (0,), "text": (1,), "fused": (0, 1)}[layer.branch]
        rows = np.flatnonzero(np.isin(tokens.modality, kind)).astype(np.int32)
        drawn = random.random((len(rows), HEADS, experts)).argsort(axis=2)[:, :, :CHOICES]
        leaning = (tokens.vocabulary_id[rows] % experts)[:, None]
        drawn[:, :, 0] = np.where(random.random((len(rows), HEADS)) < 0.4, leaning, drawn[:, :, 0])
        drawn[random.random(drawn.shape) < 0.05] = -1
        layers[layer.name] = LayerRouting(rows, drawn.astype(np.int16), np.zeros(drawn.shape, "f2"))
        loads[layer.name] = load_of(drawn, tokens.modality[rows], experts)
    return RoutingChunk(samples, tokens, (2, 2), layers, loads)


def load_of(expert: np.ndarray, modality: np.ndarray, experts: int) -> Load:
    count, refused, token = np.zeros((2, experts)), np.zeros(2), np.zeros(2)
    for heads, kind in zip(expert.tolist(), modality.tolist(), strict=True):
        token[kind] += len(heads)
        for head in heads:
            for one in head:
                if one < 0:
                    refused[kind] += 1
                else:
                    count[kind, one] += 1
    first = np.bincount(expert[:, :, 0][expert[:, :, 0] >= 0].ravel(), minlength=experts)
    values = [torch.tensor(v, dtype=torch.float32) for v in (count, refused, token, first, first)]
    entropy = torch.tensor(float(token.sum()))  # one nat of every sub-token
    return Load(*values, entropy, torch.tensor(0.0), MODALITIES)
