"""Run by test_evaluations, alone and on ranks: what tasks evaluate and predict, sharded."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

from datamodules.order import evaluation_places, num_evaluation_steps
from mhmoe_mm.batches import IGNORED, CaptionBatch
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.generation import Decoding
from mhmoe_mm.models.multiway import SharedLayout
from mhmoe_mm.parallel.strategy import FSDP2
from mhmoe_mm.storage.checkpoint_io import SealedCheckpointIO
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.captioning import Captioning, CaptionLoss
from mhmoe_mm.tasks.vqa import VQA
from tests.parallel.worlds import sparse
from tests.tasks import batches
from tests.tasks.test_captioning import tokenizer_file
from tests.tasks.test_vqa import ANSWERS, annotation_file
from tests.tasks.training import FAST, QUIET, loader

SIZE = 2
"""Rows of a rank's batch."""
LENGTHS = (1, 5, 3, 8, 2, 6, 4)
"""Words of the captions: ranks find their stop tokens at different places."""
UNEVEN = 5
"""Rows of which the second of two ranks has one batch, where the first has two."""


class Asked(NamedTuple):
    """A task, what is asked of it, and which field of a prediction names its row."""

    task: Callable[[Path], Task]
    batch: Callable[[Path], Any]
    name: str


def net() -> BEiT3:
    built = SharedLayout(dense=partial(GeluFFN, hidden=29), sparse=sparse())
    sizes = (batches.SIZE, batches.PATCH, batches.VOCAB)
    return BEiT3(built, *sizes, dim=28, num_layers=2, num_heads=2, max_text=batches.SEQ)


def captioning(folder: Path, beams: int) -> Captioning:
    decoding = Decoding(num_beams=beams, max_tokens=batches.SEQ)
    return Captioning(net(), tokenizer_file(folder), CaptionLoss(0.0, 0.0), decoding, **FAST)


def captions(folder: Path) -> CaptionBatch:
    """Images with a caption each, which is its only reference."""
    words = captioning(folder, 1).vocabulary
    shown = batches.captions(len(LENGTHS))
    token = torch.ones_like(shown.token)
    for row, length in enumerate(LENGTHS):
        own = [5 + (3 * row + i * (row + 1)) % 30 for i in range(length)]
        token[row, : length + 2] = torch.tensor([0, *own, 2])
    references = [[words.decode(row.tolist())] for row in token]
    target = torch.full_like(token, IGNORED)
    return shown._replace(token=token, pad=token == 1, target=target, references=references)


def vqa(folder: Path, official: bool) -> VQA:
    place = folder / "annotations.json"
    annotations = [annotation_file(place, range(100, 107))] if official else []
    return VQA(net(), ANSWERS, annotations, **FAST)


def questions(folder: Path) -> Any:
    return batches.questions(len(LENGTHS))


ASKED = {
    "captions, greedy": Asked(partial(captioning, beams=1), captions, "image_id"),
    "captions, beams": Asked(partial(captioning, beams=3), captions, "image_id"),
    "answers": Asked(partial(vqa, official=False), questions, "question_id"),
    "answers, official": Asked(partial(vqa, official=True), questions, "question_id"),
}
LAYOUTS: dict[int, dict[str, Callable[[], Any]]] = {
    1: {"fsdp": FSDP2},
    2: {"fsdp": FSDP2, "ep 2": partial(FSDP2, expert_parallel=2)},
}


def dealt(batch: Any, total: int, rank: int, world: int) -> list[Any]:
    """The batches of a rank as data modules deal them: without a row left, a silent one."""
    found = []
    for step in range(num_evaluation_steps(total, SIZE, world)):
        places = evaluation_places(step, SIZE, rank, world)
        own = [place for place in places if place < total] or places[:1]
        chosen = [place % total for place in own]
        part = type(batch)(
            *(f[chosen] if isinstance(f, torch.Tensor) else [f[i] for i in chosen] for f in batch)
        )
        found.append(part._replace(valid=torch.tensor([place < total for place in own])))
    return found


def evaluated(asked: Asked, folder: Path, total: int, rank: int, world: int, strategy: Any) -> Any:
    """Figures over all ranks, and what this rank predicted, by row."""
    own = dealt(asked.batch(folder), total, rank, world)
    saved = folder / f"{asked.name}.ckpt"
    task = asked.task(folder)
    trainer = Trainer(
        **QUIET, devices=world, strategy=strategy, use_distributed_sampler=False,
        plugins=[SealedCheckpointIO()],
    )  # fmt: skip
    figures = trainer.test(task, loader(own), ckpt_path=saved, verbose=False, weights_only=True)[0]
    predicted = trainer.predict(task, loader(own), ckpt_path=saved, weights_only=True)
    rows = [row for part in predicted or [] for row in part]
    return {"figures": figures, "predicted": {str(row[asked.name]): row for row in rows}}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = folder / f"{world}-{rank}"
    own.mkdir()  # files of the tasks, which every rank makes for itself
    for saved in folder.glob("*.ckpt"):
        (own / saved.name).symlink_to(saved)
    found = {
        f"{name}, {layout}, {total}": evaluated(asked, own, total, rank, world, strategy())
        for name, asked in ASKED.items()
        for layout, strategy in LAYOUTS[world].items()
        for total in (UNEVEN, len(LENGTHS))
    }
    (folder / f"{world}-{rank}.json").write_text(json.dumps(found))
