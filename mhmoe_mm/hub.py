"""Exported models to and from a model hub, by huggingface_hub; offline unless asked otherwise.

A hub keeps what `python -m tools.export` wrote, file by file. What comes back is verified as every
export is, and nothing in it is run.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from mhmoe_mm.inference import Model
from mhmoe_mm.loading import load
from mhmoe_mm.storage.exported import FILES, read_exported


def from_pretrained(
    name: str | Path,
    device: str | torch.device = "cpu",
    plugins: str | Sequence[str] = (),
    download: bool = False,
    revision: str | None = None,
) -> Model:
    """The model in a folder, or of a hub.

    Args:
        name: a folder that `tools.export` wrote, or OWNER/NAME of a hub.
        device, plugins: as for `mhmoe_mm.load`.
        download: whether the hub may be asked over the network; otherwise it comes from the hub's
            cache on this disk.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: there is no such model, or it is not what was exported.
    """
    if Path(name).exists():
        return load(name, device, plugins=plugins)
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise ValueError(f"{name} is neither a folder here nor OWNER/NAME of a model on a hub.")
    hub = _hub()
    try:
        folder = hub.snapshot_download(
            str(name),
            revision=revision,
            allow_patterns=sorted(FILES),
            local_files_only=not download,
        )
    except Exception as error:  # the hub raises many kinds, of its own and of its transport
        reason = " ".join(str(error).split())[:300].rstrip(".")
        why = "cannot be had from the hub" if download else "is not in the hub's cache on this disk"
        hint = "" if download else "; with download=True the hub is asked over the network"
        raise ValueError(f"{name} is no folder here and {why} ({reason}){hint}.") from error
    return load(folder, device, plugins=plugins)


def push_to_hub(folder: str | Path, name: str, private: bool = True, message: str = "") -> str:
    """Upload an exported model, verified first; the address of the commit.

    Args:
        folder: that `tools.export` wrote.
        name: OWNER/NAME on the hub; made where it is not there.
        private: whether others do not see it, where it is made.
        message: of the commit.

    Raises:
        ValueError: the folder is no exported model, or not as it was written, or the hub refuses.
    """
    read_exported(Path(folder))
    hub = _hub()
    try:
        api = hub.HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=sorted(FILES),
            commit_message=message or f"Upload {Path(folder).name}",
        )
    except Exception as error:  # the hub raises many kinds, of its own and of its transport
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(f"{folder} cannot be uploaded as {name} ({reason}).") from error
    return str(done)


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError("Model hubs need huggingface_hub: pip install huggingface_hub.") from error
    return huggingface_hub
