"""A small causal decoder, rows of texts as data modules deliver them, and a trained model."""

from functools import partial
from pathlib import Path

import torch
import yaml

from mhmoe_mm.batches import IGNORED, LanguageBatch
from mhmoe_mm.command_line.program import run
from mhmoe_mm.models.decoder import Decoder
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.moe import GeluExperts, MHMoE, TopKRouter
from mhmoe_mm.tasks.base import Task
from tests.datamodules.text_files import letter_tokenizer, write_tokens

VOCAB, SEQ, EXPERTS = 43, 13, 5
MAX_TEXT = 23
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


LINE = "so much for that"
"""A document that the trained model knows by heart."""


def train_language_model(folder: Path) -> Path:
    """The run of a model of letters, trained with the program on one document; its files are gone
    from where it was trained.
    """
    config = write_run(folder, [LINE] * 31)
    assert run(["fit", "--config", str(config)], Task) == 0
    (folder / "made").rename(folder / "moved")
    return folder / "runs/unnamed/version_0"


def write_run(folder: Path, texts: list[str]) -> Path:
    """The YAML of a training of a model of letters on these documents, below `folder`."""
    made = folder / "made"
    made.mkdir()
    tokenizer = letter_tokenizer(made / "tokenizer.json")
    write_tokens(made / "en.safetensors", tokenizer, texts)
    source = {"files": str(made), "batch_size": 5, "context": MAX_TEXT}
    sparse = {
        "class_path": "mhmoe_mm.moe.MHMoE",
        "init_args": {
            "num_heads": 2,
            "num_experts": EXPERTS,
            "router": {"class_path": "mhmoe_mm.moe.TopKRouter"},
            "experts": {"class_path": "mhmoe_mm.moe.GeluExperts", "init_args": {"hidden": 13}},
        },
    }
    net = {"vocab_size": VOCAB, "dim": 28, "num_layers": 2, "num_heads": 2, "max_text": MAX_TEXT}
    content = {
        "model": {
            "class_path": "mhmoe_mm.tasks.language_modeling.LanguageModeling",
            "init_args": {
                "net": {
                    "class_path": "mhmoe_mm.models.decoder.Decoder",
                    "init_args": {**net, "sparse": sparse},
                },
                "optimizer": {"class_path": "mhmoe_mm.optim.AdamW", "init_args": {"lr": 1e-2}},
                "schedule": {"class_path": "mhmoe_mm.optim.WarmupConstant"},
            },
        },
        "data": {
            "class_path": "datamodules.text.LanguageDataModule",
            "init_args": {"train": source, "val": source, "tokenizer": str(tokenizer)},
        },
        "trainer": {
            "max_steps": 100,
            "accelerator": "cpu",
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "default_root_dir": str(folder / "runs"),
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
