"""BLEU, ROUGE-L and CIDEr-D of generated captions, without Java."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchmetrics import Metric

from mhmoe_mm.metrics.bleu import bleu
from mhmoe_mm.metrics.caption_tokens import caption_tokens
from mhmoe_mm.metrics.cider import cider_d
from mhmoe_mm.metrics.packed import gather_bytes, kept, packed_rows, unpacked_rows
from mhmoe_mm.metrics.rouge import rouge_l


class CaptionScores(Metric):
    """Scores of one generated caption per image against all captions that people gave it.

    Holds all captions until `compute`, as CIDEr-D needs the whole evaluation set to tell which
    words are rare. `tokenize` cuts a caption into the words that are counted; figures made with
    different ones are not comparable.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, tokenize: Callable[[str], list[str]] = caption_tokens) -> None:
        super().__init__(dist_sync_fn=gather_bytes)
        self.tokenize = tokenize
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        caption: list[str],
        references: list[list[str]],
        image_id: list[str],
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch of captions; rows where `valid` is false do not count."""
        rows = []
        for i in kept(valid, len(caption)):
            if not references[i]:
                raise ValueError(
                    f"Image {image_id[i]!r} has no reference captions, so that its caption cannot "
                    "be scored: leave it out or give it at least one."
                )
            known = [self.tokenize(reference) for reference in references[i]]
            rows.append([image_id[i], self.tokenize(caption[i]), known])
        self.rows.append(packed_rows(rows, self.device))

    def compute(self) -> dict[str, Tensor]:
        """`bleu_1` to `bleu_4` and `rouge_l` (0 to 1) and `cider_d` (0 to 10).

        Empty if there were no captions.
        """
        rows = unpacked_rows(self.rows)
        if not rows:
            return {}
        captions, references = [row[1] for row in rows], [row[2] for row in rows]
        scores = {f"bleu_{n}": score for n, score in enumerate(bleu(captions, references), 1)}
        scores["rouge_l"] = rouge_l(captions, references)
        scores["cider_d"], _ = cider_d(captions, references)
        return {name: torch.tensor(score) for name, score in scores.items()}
