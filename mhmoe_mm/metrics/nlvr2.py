"""Accuracy and consistency on NLVR2, as its authors count them (github.com/lil-lab/nlvr)."""

import torch
from torch import Tensor
from torchmetrics import Metric

from mhmoe_mm.metrics.packed import gather_bytes, kept, packed_rows, unpacked_rows


class Nlvr2Accuracy(Metric):
    """Share of examples judged right, and of sentences judged right with every pair of images."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__(dist_sync_fn=gather_bytes)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        predicted: Tensor,
        label: Tensor,
        identifier: list[str],
        valid: Tensor | None = None,
    ) -> None:
        """Add a batch: classes (batch) judged and true, and the examples' names.

        A name is `split-set-pair-sentence`. Rows where `valid` is false do not count.
        """
        for name in identifier:
            if len(name.split("-")) != 4:
                raise ValueError(
                    f"NLVR2 examples are named split-set-pair-sentence, such as dev-12-3-0, but "
                    f"this one is named {name!r}."
                )
        right = (predicted == label).tolist()
        rows = [[identifier[i], right[i]] for i in kept(valid, len(identifier))]
        self.rows.append(packed_rows(rows, label.device))

    def compute(self) -> dict[str, Tensor]:
        """`accuracy` and `consistency`, from 0 to 1; empty if nothing was judged."""
        rows = unpacked_rows(self.rows)
        if not rows:
            return {}
        sentences: dict[tuple[str, str, str], bool] = {}
        for name, right in rows:
            split, group, _pair, sentence = name.split("-")
            key = split, group, sentence
            sentences[key] = sentences.get(key, True) and right
        return {
            "accuracy": torch.tensor(sum(right for _, right in rows) / len(rows)),
            "consistency": torch.tensor(sum(sentences.values()) / len(sentences)),
        }
