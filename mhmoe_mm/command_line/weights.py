"""Which weights an evaluation or a prediction is of."""

import hashlib
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from mhmoe_mm.storage.whole import file_sha256


def weights_path(given: Namespace) -> Path | None:
    """The checkpoint of a configuration, or else the file that its model starts from."""
    path = given.get("ckpt_path") or given.get("model.init_args.init_from")
    return Path(str(path)) if path else None


def described(path: Path | None) -> dict[str, Any] | None:
    """The path and the sha256 of what lies there."""
    return None if path is None else {"path": str(path), "sha256": sha256(path)}


def sha256(path: Path) -> str:
    """Of a file, or of all files of a folder with their names."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(known for known in path.rglob("*") if known.is_file()):
        digest.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
    return digest.hexdigest()
