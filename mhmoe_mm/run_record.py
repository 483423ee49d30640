"""What the folder of a run tells of a checkpoint in it: data, figures, and how experts were used.

    runs/NAME/version_N/
      checkpoints/last.ckpt
      config.yaml                    what it was trained on
      experts.jsonl                  which experts worked, of `ExpertActivation`
      test.json, validate.json       figures; also of evaluations in other versions of the run

Whatever is not there is left out. Figures count only where the sha256 beside them is that of the
checkpoint.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mhmoe_mm.command_line.weights import sha256

SPLITS = ("train", "val", "test")
EVALUATED = ("test.json", "validate.json")


def sections(checkpoint: Path, step: int | None) -> dict[str, dict[str, str]]:
    """Tables for people, by their headings; empty for a checkpoint outside of a run's folder.

    Args:
        checkpoint: in the folder `checkpoints` of a run.
        step: of the training that it holds.
    """
    if checkpoint.parent.name != "checkpoints":
        return {}
    run = checkpoint.parent.parent
    tables = {"Trained on": _data(run), "Figures": _figures(run, checkpoint)}
    at, experts = _experts(run, step)
    tables[f"Experts, validation at step {at}"] = experts
    return {heading: table for heading, table in tables.items() if table}


def _data(run: Path) -> dict[str, str]:
    """The shards of each split, without the way to them, and the batch."""
    try:
        data = yaml.safe_load((run / "config.yaml").read_bytes())["data"]
        given = dict(data.get("init_args") or {})
        rows = {"data": f"`{data['class_path']}`"}
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return {}
    for split in SPLITS:
        source = given.get(split)
        if isinstance(source, Mapping) and source.get("shards"):
            shards = source["shards"]
            several = [shards] if isinstance(shards, str) else list(shards)
            names = ", ".join(f"`{'/'.join(Path(str(s)).parts[-2:])}`" for s in several)
            rows[split] = f"{names}, {source.get('batch_size')} in a batch"
    return rows


def _figures(run: Path, checkpoint: Path) -> dict[str, str]:
    """What evaluations of this very checkpoint found."""
    found = [
        content
        for name in EVALUATED
        for path in sorted(run.parent.glob(f"version_*/{name}"))
        if isinstance(content := _json(path), dict) and content.get("checkpoint")
    ]
    if not found:
        return {}
    own = sha256(checkpoint)
    return {
        name: f"{value:.4g}"
        for content in found
        if content["checkpoint"].get("sha256") == own
        for name, value in content.get("metrics", {}).items()
        if isinstance(value, int | float) and "experts/" not in name
    }


def _experts(run: Path, step: int | None) -> tuple[int | None, dict[str, str]]:
    """The newest validation up to a step, and a row for every sparse layer and kind of token."""
    records = [
        record
        for record in _lines(run / "experts.jsonl")
        if record.get("stage") == "val" and (step is None or record.get("step", 0) <= step)
    ]
    at = max((record["step"] for record in records), default=None)
    rows = {}
    for record in records:
        if record["step"] != at:
            continue
        for kind, use in record["kinds"].items():
            by_chance = use["random"]["activation"]
            rows[f"`{record['layer']}`, {kind}"] = (
                f"{_share(use['activation'])} of {record['experts']} experts active "
                f"({_share(by_chance)} by chance), the fullest has {use['max_over_mean']:.2g} "
                "even shares"
            )
    return at, rows


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file that a running training may be writing."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"layer", "kinds", "step"} <= record.keys():
            yield record


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
