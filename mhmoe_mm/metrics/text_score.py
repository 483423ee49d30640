"""How well texts are predicted: perplexity and bits per byte, of all and of each language."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from mhmoe_mm.metrics.packed import gather_bytes, kept, packed_rows, unpacked_rows


class TextScore(Metric):
    """Perplexity and bits per byte over an evaluation.

    `perplexity` is `e^(nats / tokens)`, and depends on how the tokenizer cuts; `bits_per_byte` is
    `nats / ln 2 / bytes`, and may be compared between tokenizers. With several languages each has
    both, as `perplexity_en`. Means are over tokens and bytes, never over rows or languages.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_bytes)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        nats: Tensor,
        tokens: Tensor,
        num_bytes: Tensor,
        language: list[str],
        key: list[str],
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            nats: float (batch), what all targets of a row cost together.
            tokens: int (batch), how many targets that were.
            num_bytes: int (batch), UTF-8 bytes that they spell.
            language: the code of each row's language.
            key: a name of each row that no other row has.
            valid: bool (batch); rows where it is false do not count.
        """
        columns = zip(
            key, language, nats.tolist(), tokens.tolist(), num_bytes.tolist(), strict=True
        )
        rows = list(columns)
        chosen = [list(rows[i]) for i in kept(valid, len(rows))]
        self.rows.append(packed_rows(chosen, nats.device))

    def compute(self) -> dict[str, Tensor]:
        """`perplexity` and `bits_per_byte`; then of each language, where there are several.

        What has no tokens, or no bytes, is left out.
        """
        rows = unpacked_rows(self.rows)
        scores = _scores("", rows)
        languages = sorted({row[1] for row in rows})
        if len(languages) > 1:
            for language in languages:
                scores |= _scores(f"_{language}", [row for row in rows if row[1] == language])
        return scores


def _scores(suffix: str, rows: list[list]) -> dict[str, Tensor]:
    # Summed exactly: the same to the last digit however rows were cut into batches and ranks.
    nats = math.fsum(row[2] for row in rows)
    tokens, num_bytes = sum(row[3] for row in rows), sum(row[4] for row in rows)
    scores = {}
    if tokens:
        scores[f"perplexity{suffix}"] = torch.tensor(math.exp(nats / tokens))
    if num_bytes:
        scores[f"bits_per_byte{suffix}"] = torch.tensor(nats / num_bytes / math.log(2))
    return scores
