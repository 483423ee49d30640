"""Every metric, fed on one process or on two that share the samples unevenly.

Started on ranks with the folder to write to.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mhmoe_mm.metrics.captions import CaptionScores
from mhmoe_mm.metrics.nlvr2 import Nlvr2Accuracy
from mhmoe_mm.metrics.recall import RetrievalRecall
from mhmoe_mm.metrics.text_score import TextScore
from mhmoe_mm.metrics.vqa_accuracy import Annotation, SoftScore, VqaAccuracy

COUNT, BATCH = 23, 3
WORDS = ["one", "red", "dog", "runs", "the", "snow", "a", "yes", "two", "wave"]


def words(*numbers):
    return [WORDS[n % len(WORDS)] for n in numbers]


def update(name, metric, rows, valid):
    """Feed samples that are functions of their number."""
    number = torch.tensor(rows)
    if name == "recall":
        feature = torch.sin(torch.outer(number // 2 * 1.7 + 1, torch.arange(1.0, 8.0)))
        text = feature + 0.8 * torch.cos(torch.outer(number * 2.3, torch.arange(1.0, 8.0)))
        metric.update(feature, text, number // 2, valid)
    elif name == "soft":
        grid = torch.outer(number + 1, torch.tensor([3, 5, 7, 11]))
        metric.update((grid * 13 % 17).float(), (grid % 11) / 10, valid)
    elif name == "nlvr2":
        names = [f"dev-{i // 5}-{i % 5}-0" for i in rows]
        metric.update((number % 7 > 0).long(), torch.ones_like(number), names, valid)
    elif name == "text":
        language = [("en", "de", "cs")[i % 3] for i in rows]
        names = [f"row {i}" for i in rows]
        metric.update(number * 0.7 + 1, number + 1, number * 3 + 1, language, names, valid)
    elif name == "vqa":
        people = [tuple(words(*(i * j for j in range(10)))) for i in rows]
        kinds = [
            Annotation(p, f"kind {i % 8}", WORDS[i % 2]) for i, p in zip(rows, people, strict=True)
        ]
        metric.update(words(*rows), kinds, rows, valid)
    else:
        known = [[" ".join(words(*range(i, i + 5 + r))) for r in range(3)] for i in rows]
        made = [" ".join(words(*range(i + 1, i + 4 + i % 4), i * i)) for i in rows]
        metric.update(made, known, [f"image {i}" for i in rows], valid)


def figures(mine):
    """All metrics over the given samples, in batches filled up with samples that do not count."""
    metrics = {
        "recall": RetrievalRecall(), "soft": SoftScore(), "nlvr2": Nlvr2Accuracy(),
        "vqa": VqaAccuracy(), "captions": CaptionScores(),
        "text": TextScore(),
    }  # fmt: skip
    for start in range(0, len(mine), BATCH):
        rows = mine[start : start + BATCH]
        valid = torch.tensor([True] * len(rows) + [False] * (BATCH - len(rows)))
        rows = rows + [0] * (BATCH - len(rows))
        for name, metric in metrics.items():
            update(name, metric, rows, valid)
    return {
        name: {key: value.item() for key, value in metric.compute().items()}
        for name, metric in metrics.items()
    }


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    splits = {
        "mixed": [i for i in range(COUNT) if (i % 4 == 3) == rank],
        "all on the second": list(range(COUNT)) if rank else [],
    }
    found = {name: figures(mine) for name, mine in splits.items()}
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
