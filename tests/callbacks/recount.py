"""A recount of recorded routing that knows nothing of the code that wrote it."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

Counts = dict[tuple[str, str], Counter]


def recount(folder: Path) -> tuple[Counts, dict[tuple[str, str], int]]:
    """(assignments by expert, sub-tokens), both by layer and modality, of all files of a folder."""
    counts: Counts = defaultdict(Counter)
    tokens: dict[tuple[str, str], int] = defaultdict(int)
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            meta = json.loads(file["meta.json"])
            for name in file.files:
                if not name.endswith("/expert"):
                    continue
                place, _, rest = name.partition("/layer/")
                layer = rest.removesuffix("/expert")
                rows = file[f"{place}/layer/{layer}/rows"]
                modality = file[f"{place}/token/modality"]
                for row, heads in zip(rows.tolist(), file[name].tolist(), strict=True):
                    key = (layer, meta["modalities"][modality[row]])
                    tokens[key] += len(heads)
                    for head in heads:
                        counts[key].update(expert for expert in head if expert >= 0)
    return counts, tokens


def by_language(folder: Path) -> tuple[Counts, dict[tuple[str, str], int]]:
    """The same by layer and language of the sample."""
    counts: Counts = defaultdict(Counter)
    tokens: dict[tuple[str, str], int] = defaultdict(int)
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            for name in file.files:
                if name.endswith("/expert"):
                    place, _, rest = name.partition("/layer/")
                    layer = rest.removesuffix("/expert")
                    language = file[f"{place}/sample/language"]
                    sample = file[f"{place}/token/sample"][file[f"{place}/layer/{layer}/rows"]]
                    for row, heads in zip(sample.tolist(), file[name].tolist(), strict=True):
                        tokens[layer, str(language[row])] += len(heads)
                        for head in heads:
                            counts[layer, str(language[row])].update(e for e in head if e >= 0)
    return counts, tokens


def logged(file: Path) -> tuple[Counts, dict[tuple[str, str], int]]:
    """What `ExpertActivation` wrote of its last event, in the same form."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    last = (lines[-1]["stage"], lines[-1]["step"])
    counts: Counts = defaultdict(Counter)
    tokens: dict[tuple[str, str], int] = defaultdict(int)
    for line in lines:
        if (line["stage"], line["step"]) != last:
            continue
        for kind, own in line["kinds"].items():
            if kind != "all":
                counts[line["layer"], kind] = Counter(
                    {expert: count for expert, count in enumerate(own["count"]) if count}
                )
                tokens[line["layer"], kind] = own["tokens"]
    return counts, tokens
