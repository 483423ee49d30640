"""A dense checkpoint as a folder with a sparse model, which loads as every export does."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mhmoe_mm.checkpoint.moments import as_tensors
from mhmoe_mm.exporting import export
from mhmoe_mm.loading import built_net, checkpoint_of, read_model
from mhmoe_mm.storage.checkpoint_io import TRAINING
from mhmoe_mm.storage.exported import check_place
from mhmoe_mm.storage.sealed import save_sealed
from mhmoe_mm.upcycling.dense_moments import dense_moments
from mhmoe_mm.upcycling.filling import Start
from mhmoe_mm.upcycling.moments import upcycled_moments
from mhmoe_mm.upcycling.net import Upcycled, upcycle_net

NET = "net."
"""Begins the names of a network's weights in a task."""


def upcycle(
    path: str | Path,
    net: Mapping[str, Any],
    folder: Path,
    start: Start,
    tokenizer: str | None = None,
    plugins: Sequence[str] = (),
    overwrite: bool = False,
    optimizer_state: bool = False,
) -> list[Upcycled]:
    """Write a sparse model that starts from a dense one; what became of its layers.

    Heads, tokenizer and lists of names are the dense model's. A schedule starts anew.

    Args:
        path: a checkpoint of `mhmoe-mm fit`, the folder of a run for its last one, or an export.
        net: the sparse network, as a configuration has it: `class_path` and `init_args`.
        folder: to be; whole, or not there.
        start: how experts and routers start.
        tokenizer, plugins, overwrite: as for `mhmoe_mm.exporting.export`.
        optimizer_state: write AdamW's moments too, as `mhmoe_mm.upcycling.moments` maps them, for a
            training that starts from the folder.

    Raises:
        ValueError: there is no such checkpoint, or the networks do not go together; or the state of
            the optimizer is wanted, and the checkpoint has none of AdamW.
    """
    check_place(folder, overwrite)
    file = checkpoint_of(path)
    content, given = read_model(file)
    old = dense_moments(content, given, file, tokenizer, plugins) if optimizer_state else {}
    weights: dict[str, Tensor] = content["state_dict"]
    dense = built_net(given, tuple(plugins), file)
    try:
        dense.load_state_dict(
            {name.removeprefix(NET): w for name, w in weights.items() if name.startswith(NET)}
        )
    except RuntimeError as error:
        raise ValueError(
            f"The weights in {file} are not those of the network that it describes."
        ) from error
    sparse = built_net({"net": dict(net)}, tuple(plugins), file)
    done = upcycle_net(dense, sparse, start)
    moments = upcycled_moments(old, dense, sparse, [layer.path for layer in done])
    heads = {name: w for name, w in weights.items() if not name.startswith(NET)}
    turned = {NET + name: weight for name, weight in sparse.state_dict().items()}
    new = {
        name: value
        for name, value in content.items()
        if name not in ("state_dict", "optimizer_states", TRAINING, "callbacks")
    }
    new |= {"state_dict": heads | turned, "hyper_parameters": given | {"net": dict(net)}}
    with tempfile.TemporaryDirectory() as place:
        save_sealed(new, Path(place) / "upcycled.ckpt")
        source = Path(place) / "upcycled.ckpt"
        export(source, folder, tokenizer, plugins, overwrite, as_tensors(moments))
    return done
