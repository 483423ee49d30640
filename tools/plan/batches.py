"""Batches of the shapes that a training would read, with made-up content."""

from typing import Any

import torch
from torch import Tensor

from mhmoe_mm.batches import (
    IGNORED,
    ImageBatch,
    LanguageBatch,
    PairBatch,
    PretrainingBatch,
    RetrievalBatch,
    TextBatch,
)
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.tasks.base import Task
from tools.plan.selection import told
from tools.plan.settings import Setting


def made_up(task: Task, setting: Setting) -> Any:
    """A batch of one rank, tokens and pixels at random."""
    if setting.task == "language_modeling":
        return _language(task, setting)
    net = task.net
    assert isinstance(net, BEiT3)
    if setting.task == "retrieval":
        rows = torch.arange(setting.batch)
        valid = torch.ones(setting.batch, dtype=torch.bool)
        token, pad = _text(net.vocab_size, setting)
        return RetrievalBatch(_pixel(net, setting), token, pad, rows, valid, _names(setting))
    image = (_pixel(net, setting), _masked(net, setting))
    names = _names(setting)
    return PretrainingBatch(
        ImageBatch(*image, names),
        TextBatch(*_masked_text(net.vocab_size, setting, setting.masked_text), names, names),
        PairBatch(
            *image, *_masked_text(net.vocab_size, setting, setting.masked_pair_text), names, names
        ),
    )


def _names(setting: Setting) -> list[str]:
    return [""] * setting.batch


def _pixel(net: BEiT3, setting: Setting) -> Tensor:
    side = net.image_embedding.image_size
    return torch.randint(256, (setting.batch, 3, side, side), dtype=torch.uint8)


def _masked(net: BEiT3, setting: Setting) -> Tensor:
    patches = (net.image_embedding.image_size // net.image_embedding.patch.stride[0]) ** 2
    return _chosen(setting.batch, patches, setting.masked_patches)


def _chosen(rows: int, places: int, share: float) -> Tensor:
    """bool (rows places), the same number true in every row, and that number told."""
    number = max(1, round(share * places))
    masked = torch.zeros(rows, places, dtype=torch.bool)
    masked[:, :number] = True
    return told(masked, rows * number)


def _text(vocab_size: int, setting: Setting) -> tuple[Tensor, Tensor]:
    token = torch.randint(vocab_size, (setting.batch, setting.text))
    return token, torch.zeros(setting.batch, setting.text, dtype=torch.bool)


def _masked_text(vocab_size: int, setting: Setting, share: float) -> tuple[Tensor, Tensor, Tensor]:
    token, pad = _text(vocab_size, setting)
    number = max(1, round(share * setting.text))
    target = token.clone()
    target[:, number:] = IGNORED
    return token, told(target, setting.batch * number), pad


def _language(task: Task, setting: Setting) -> LanguageBatch:
    shape = (setting.batch, setting.text)
    token = torch.randint(getattr(task.net, "vocab_size"), shape)  # noqa: B009 a Decoder's
    return LanguageBatch(
        token=token,
        target=token.clone(),
        document=torch.zeros(shape, dtype=torch.long),
        num_bytes=torch.full((setting.batch,), setting.text),
        language=torch.zeros(setting.batch, dtype=torch.long),
        languages=("und",),
        valid=torch.ones(setting.batch, dtype=torch.bool),
        key=_names(setting),
    )
