"""How long a report on a large run takes, and how much memory.

    python -m tools.benchmarks.expert_report
    python -m tools.benchmarks.expert_report --experts 8 --layers 6 --tokens 100000

Writes made-up routing of a network in the form that runs are recorded in, and times the command
`python -m tools.expert_report` on that file, in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mhmoe_mm.callbacks.routing_file import RoutingMeta, RoutingWriter
from mhmoe_mm.callbacks.routing_record import LayerRouting
from mhmoe_mm.callbacks.routing_tokens import (
    EDGE_PATCH,
    FLAT_PATCH,
    MODALITIES,
    RoutingChunk,
    Samples,
    Tokens,
)
from mhmoe_mm.inputs.spelling import WHOLE_WORD
from mhmoe_mm.moe.routing import Load
from mhmoe_mm.moe.sparse_layers import Description

SIDE, TEXT, SAMPLES = 14, 60, 100
"""Patches in a row, tokens of a text, pairs in a forward."""
VOCABULARY = 5000


def made_up(options: argparse.Namespace, number: int) -> RoutingChunk:
    """One forward of pairs; experts lean towards the kind of the token, so there is something to
    find.
    """
    random = np.random.default_rng(number)
    patches = SIDE * SIDE
    length = patches + TEXT
    image = np.arange(length) < patches
    row = np.repeat(np.arange(SAMPLES, dtype=np.int32), length)
    text = np.tile(~image, SAMPLES)
    ids = np.where(text, random.zipf(1.3, len(text)) % VOCABULARY, -1).astype(np.int32)
    place = np.tile(np.arange(length, dtype=np.int32), SAMPLES)
    energy = np.where(text, np.nan, random.random(len(text)) * 0.04).astype(np.float32)
    seen = np.where(energy >= 0.02, EDGE_PATCH, FLAT_PATCH)
    tokens = Tokens(
        sample=row,
        position=place,
        modality=text.astype(np.int8),
        token_class=np.where(text, WHOLE_WORD, seen).astype(np.int8),
        vocabulary_id=ids,
        word=np.where(text, place - patches, -1).astype(np.int32),
        patch=np.where(text, -1, place).astype(np.int32),
        energy=energy,
        clean=np.ones(len(text), dtype=bool),
    )
    languages = [("en", "de", "fr", "cs")[i % 4] for i in range(SAMPLES)]
    samples = Samples(
        [f"{number}/{i}" for i in range(SAMPLES)], ["pair"] * SAMPLES, languages, [""] * SAMPLES
    )
    layers, loads = {}, {}
    for layer in described(options):
        shape = (len(text), options.heads, options.choices)
        drawn = random.integers(options.experts, size=shape, dtype=np.int16)
        leaning = np.where(text, ids % options.experts, drawn[:, 0, 0])[:, None, None]
        expert = np.where(random.random(shape, dtype=np.float32) < 0.3, leaning, drawn)
        small = expert.astype(np.int8 if options.experts < 128 else np.int16)
        weight = random.random(shape, dtype=np.float32).astype(np.float16)
        rows = np.arange(len(text), dtype=np.int32)
        layers[layer.name] = LayerRouting(rows, small, weight)
        loads[layer.name] = _load(expert, text, options.experts)
    return RoutingChunk(samples, tokens, (SIDE, SIDE), layers, loads)


def _load(expert: np.ndarray, text: np.ndarray, num_experts: int) -> Load:
    of = [np.bincount(expert[text == kind].ravel(), minlength=num_experts) for kind in (0, 1)]
    count = torch.tensor(np.stack(of), dtype=torch.float64)
    tokens = [int((text == kind).sum()) * expert.shape[1] for kind in (0, 1)]
    first = torch.tensor(np.bincount(expert[:, :, 0].ravel(), minlength=num_experts))
    nothing = torch.zeros((), dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    token = torch.tensor(tokens, dtype=torch.float64)
    return Load(count, zeros, token, first.double(), first.double(), nothing, nothing, MODALITIES)


def described(options: argparse.Namespace) -> list[Description]:
    """The layers."""
    return [
        Description(
            f"blocks.{i}.ffn.shared",
            i,
            "shared",
            "MHMoE",
            options.experts,
            options.heads,
            "Made up",
        )
        for i in range(options.layers)
    ]


def write(options: argparse.Namespace, path: Path) -> int:
    """The file; its number of tokens."""
    pieces = tuple(f" word{i}" for i in range(VOCABULARY))
    meta = RoutingMeta("made up", "", 0, "random routing", tuple(described(options)), pieces)
    writer, tokens, number = RoutingWriter(path, meta), 0, 0
    while tokens < options.tokens:
        chunk = made_up(options, number)
        writer.add(chunk)
        tokens, number = tokens + len(chunk.tokens.sample), number + 1
    writer.close()
    return tokens


def main(argv: list[str] | None = None) -> int:
    """Make the file, report on it, print seconds and bytes."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmarks.expert_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--experts", type=int, default=64)
    add("--layers", type=int, default=24)
    add("--heads", type=int, default=4)
    add("--choices", type=int, default=2, help="experts of a sub-token")
    add("--tokens", type=int, default=1_000_000)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "routing.npz"
        tokens = write(options, file)
        print(
            f"{tokens:,} tokens, {options.layers} layers of {options.experts} experts, "
            f"{options.heads} heads, {options.choices} choices: {file.stat().st_size / 1e6:.0f} MB"
        )
        command = [sys.executable, "-m", "tools.expert_report", str(file)]
        begin = time.perf_counter()
        status = subprocess.run([*command, "--out", f"{folder}/report.html"]).returncode
        seconds = time.perf_counter() - begin
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"{seconds:.1f} s ({used.ru_utime + used.ru_stime:.1f} s of processors), "
            f"{used.ru_maxrss / 1e6:.2f} GB at most, started program included"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
