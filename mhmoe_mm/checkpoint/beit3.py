"""The released BEiT-3 models: recognised from their keys, renamed one to one, there and back.

Sizes are read from shapes. The number of heads alone leaves no trace in the weights: the released
models have heads of 64 features. Facts: the code released with https://arxiv.org/abs/2208.10442.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhmoe_mm.checkpoint.imported import Imported
from mhmoe_mm.checkpoint.report import listed
from mhmoe_mm.checkpoint.weights import in_float32
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.models.embeddings import UNUSED_ROWS
from mhmoe_mm.models.ffn import GeluFFN
from mhmoe_mm.models.heads import (
    AnswerHead,
    ClassHead,
    EmbeddingHead,
    MaskedImageHead,
    MaskedLanguageHead,
    Pooler,
    TwoImageHead,
)
from mhmoe_mm.models.multiway import ReleasedLayout
from mhmoe_mm.models.released import MODELS, our_head_names, our_names, resize_positions
from mhmoe_mm.storage.exported import class_path

PREFIX = "beit3."
BACKBONE = "backbone"
"""The kind of a file without any head."""
HEAD_WIDTH = 64
POSITION = "net.image_embedding.position"
TASKS = {
    BACKBONE: "masked_pretraining.MaskedPretraining",
    "pretraining": "masked_pretraining.MaskedPretraining",
    "vqa": "vqa.VQA",
    "nlvr2": "nlvr2.NLVR2",
    "captioning": "captioning.Captioning",
    "imagenet": "image_classification.ImageClassification",
    "retrieval": "retrieval.Retrieval",
}
"""The task that each kind of released model is one of, below `mhmoe_mm.tasks`."""
METHODS = {
    "vqa": ("answer",),
    "nlvr2": ("is_true",),
    "captioning": ("caption",),
    "imagenet": ("classify",),
    "retrieval": ("embed_image", "embed_text", "score", "probabilities"),
}
"""What a model of a kind can be asked."""
LISTS = {"vqa": "answers", "imagenet": "classes"}
"""The list of names that belongs to a kind's scores."""
MAX_TOKENS, MAX_CAPTION = 64, 32
"""Longest texts of the published fine-tuning, and longest captions."""


class Released(NamedTuple):
    """What the keys and shapes of a released model say."""

    model: str
    """`backbone` or one of `mhmoe_mm.models.released.MODELS`."""
    names: dict[str, str]
    """From every name in the file to ours."""
    sizes: dict[str, Any]
    """The arguments of `BEiT3` besides its layout."""
    hidden: int
    """Inner width of the feed-forward nets."""


def is_beit3(names: Mapping[str, Any]) -> bool:
    """Whether these may be the names of a released BEiT-3 model."""
    return any(name.removeprefix(PREFIX).startswith("encoder.embed_positions.") for name in names)


def recognised(given: Mapping[str, Tensor], source: str, num_heads: int | None = None) -> Released:
    """Which released model these weights are.

    Args:
        given: by the names in the file; a backbone alone may lack the prefix `beit3.`.
        source: where they come from, for errors.
        num_heads: of the attention; None: heads of 64 features, as in the released models.

    Raises:
        ValueError: a name is unknown or missing, or a shape is not that of the others.
    """
    prefix = PREFIX if any(name.startswith(PREFIX) for name in given) else ""
    layers = [name.split(".") for name in given if name.startswith(f"{prefix}encoder.layers.")]
    at = 2 + bool(prefix)
    numbers = {parts[at] for parts in layers if parts[at].isdecimal()}
    num_layers = 1 + max((int(number) for number in numbers), default=-1)
    if num_layers > len(given):
        raise ValueError(f"{source} numbers a layer {num_layers - 1}, and others are missing.")
    normed = any(name.startswith(f"{prefix}encoder.layer_norm.") for name in given)
    backbone = {
        f"{prefix}{theirs}": f"net.{ours}" for theirs, ours in our_names(num_layers, normed).items()
    }
    rest = [n for n in given if not n.startswith(PREFIX)] if prefix else given.keys() - backbone
    model, heads = _kind(set(rest), source)
    names = backbone | heads
    if unknown := sorted(given.keys() - names.keys()):
        raise ValueError(
            f"{source} is a released BEiT-3 model but for names that none has: {listed(unknown)}."
        )
    if missing := sorted(names.keys() - given.keys()):
        raise ValueError(f"{source} lacks {listed(missing)} of the {model} model of BEiT-3.")
    sizes, hidden = _sizes(given, prefix, num_layers, normed, num_heads, source)
    found = Released(model, {name: names[name] for name in given}, sizes, hidden)
    _check_shapes(found, given, source)
    return found


def from_beit3(
    given: Mapping[str, Tensor],
    source: str,
    num_heads: int | None = None,
    image_size: int | None = None,
) -> Imported:
    """A released model as a task of ours, in float32.

    Args:
        given, source, num_heads: as in `recognised`.
        image_size: in pixels, to which the image positions are interpolated; None: they stay.

    Raises:
        ValueError: as `recognised`; or a weight is no number, or the image size does not fit.
    """
    found = recognised(given, source, num_heads)
    weights = {found.names[name]: weight for name, weight in in_float32(given, source).items()}
    sizes, notes = dict(found.sizes), []
    if image_size is not None and image_size != sizes["image_size"]:
        patch = sizes["patch_size"]
        if image_size < patch or image_size % patch:
            raise ValueError(
                f"Images of {image_size} pixels do not divide into patches of {patch}: choose a "
                f"multiple of {patch}."
            )
        old = weights[POSITION]
        weights[POSITION] = resize_positions(old, image_size // patch)
        notes.append(
            f"image positions interpolated from {len(old)} to {len(weights[POSITION])} rows, "
            f"{sizes['image_size']} to {image_size} pixels"
        )
        sizes["image_size"] = image_size
    dense = {"class_path": class_path(GeluFFN), "init_args": {"hidden": found.hidden}}
    layout = {"class_path": class_path(ReleasedLayout), "init_args": {"dense": dense}}
    init_args: dict[str, Any] = {
        "net": {"class_path": class_path(BEiT3), "init_args": {"layout": layout, **sizes}}
    }
    if found.model == "captioning":
        # As it was published: beams, and the longest caption.
        length = min(MAX_CAPTION, sizes["max_text"])
        init_args["decoding"] = {"num_beams": 3, "length_penalty": 0.6, "max_tokens": length}
        init_args["tokenizer"] = None
    if found.model == "imagenet":
        init_args["num_classes"] = len(weights["head.out.bias"])
    longest = MAX_CAPTION if found.model == "captioning" else MAX_TOKENS
    return Imported(
        title=f"BEiT-3, {found.model}",
        task=f"mhmoe_mm.tasks.{TASKS[found.model]}",
        init_args=init_args,
        weights=weights,
        names=found.names,
        notes=notes,
        methods=METHODS.get(found.model, ()),
        reads_texts=found.model in METHODS and found.model != "imagenet",
        max_tokens=min(longest, sizes["max_text"]),
        list_name=LISTS.get(found.model),
        list_length=len(weights["head.out.bias"]) if found.model in LISTS else 0,
    )


def to_beit3(weights: Mapping[str, Tensor], source: str) -> tuple[str, dict[str, Tensor]]:
    """The kind of a dense model of ours, and its weights under the released names.

    Args:
        weights: by the names in the state dict of a task.
        source: where they come from, for errors.

    Raises:
        ValueError: the network is not laid out as the released ones, or its head is none of theirs.
    """
    blocks = {name.split(".")[2] for name in weights if name.startswith("net.blocks.")}
    normed = any(name.startswith("net.norm.") for name in weights)
    backbone = {
        f"net.{ours}": f"{PREFIX}{theirs}"
        for theirs, ours in our_names(len(blocks), normed).items()
    }
    own = {name for name in weights if not name.startswith("net.")}
    own = {name for name in own if not name.startswith("image_target.")}  # what teaches it
    if other := sorted({name for name in weights if name.startswith("net.")} ^ backbone.keys()):
        raise ValueError(
            f"{source} is not laid out as the released BEiT-3 models, which are dense and share "
            f"nothing between image and text but attention (ReleasedLayout): {listed(other)} "
            "differ."
        )
    kinds = {
        model: {ours: theirs for theirs, ours in our_head_names(model).items()} for model in MODELS
    }
    for model, heads in (kinds | {BACKBONE: {}}).items():
        if heads.keys() == own:
            names = backbone | heads
            return model, {names[name]: weights[name] for name in weights if name in names}
    raise ValueError(
        f"{source} has a head that no released BEiT-3 model has: {listed(sorted(own))}."
    )


def _kind(rest: set[str], source: str) -> tuple[str, dict[str, str]]:
    """Which model has these names outside of the backbone, and ours for them."""
    kinds: dict[str, dict[str, str]] = {BACKBONE: {}}
    kinds |= {model: our_head_names(model) for model in MODELS}
    # Of heads that share names, the one that differs least is meant.
    model = min(kinds, key=lambda kind: len(kinds[kind].keys() ^ rest))
    if unknown := sorted(rest - kinds[model].keys()):
        raise ValueError(
            f"{source} is a released BEiT-3 model but for names that none has: {listed(unknown)}."
        )
    return model, kinds[model]


def _sizes(
    given: Mapping[str, Tensor],
    prefix: str,
    num_layers: int,
    normed: bool,
    num_heads: int | None,
    source: str,
) -> tuple[dict[str, Any], int]:
    """The arguments of `BEiT3`, and the inner width of its feed-forward nets."""

    def shape(name: str, axes: int) -> torch.Size:
        found = given[f"{prefix}{name}"].shape
        if len(found) != axes:
            raise ValueError(f"{prefix}{name} in {source} has the shape {tuple(found)}.")
        return found

    vocab_size, dim = shape("text_embed.weight", 2)
    patch = shape("vision_embed.proj.weight", 4)[2]
    rows = shape("encoder.embed_positions.A.weight", 2)[0]
    max_text = shape("encoder.embed_positions.B.weight", 2)[0] - UNUSED_ROWS
    hidden = shape("encoder.layers.0.ffn.A.fc1.weight", 2)[0] if num_layers else 0
    patches = rows - UNUSED_ROWS - 1
    side = round(max(patches, 0) ** 0.5)
    if not num_layers or side**2 != patches or not patches:
        raise ValueError(
            f"{source} has {num_layers} layers and {rows} image positions, of which a released "
            "model has 3 beside those of a square grid of patches."
        )
    if num_heads is None:
        if dim % HEAD_WIDTH:
            raise ValueError(
                f"{source} has a width of {dim}, which no released model has: the number of heads "
                "leaves no trace in weights, give --num-heads."
            )
        num_heads = dim // HEAD_WIDTH
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"A width of {dim} cannot be cut into {num_heads} equal heads.")
    sizes = {
        "image_size": side * patch,
        "patch_size": patch,
        "vocab_size": vocab_size,
        "dim": dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "max_text": max_text,
        "normalize_output": normed,
    }
    return sizes, hidden


def _check_shapes(found: Released, given: Mapping[str, Tensor], source: str) -> None:
    """Compare with a network of these sizes, which takes no memory."""
    with torch.device("meta"):
        net = BEiT3(ReleasedLayout(lambda dim: GeluFFN(dim, found.hidden)), **found.sizes)
        heads = _heads(found, given)
    built = nn.ModuleDict({"net": net, **heads}).state_dict()
    wanted = {name: weight.shape for name, weight in built.items()}
    for theirs, ours in found.names.items():
        should = wanted.get(ours, torch.Size())  # the temperature is a single number
        if given[theirs].shape != should:
            raise ValueError(
                f"{theirs} in {source} has the shape {tuple(given[theirs].shape)}; beside the "
                f"others it should be {tuple(should)}."
            )


def _heads(found: Released, given: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """What stands on the network, by its name in the task."""
    theirs = {ours: name for name, ours in found.names.items()}
    dim, vocab_size = found.sizes["dim"], found.sizes["vocab_size"]

    def outputs(name: str) -> int:
        return given[theirs[name]].numel()

    match found.model:
        case "pretraining":
            image = MaskedImageHead(dim, outputs("image_head.out.bias"))
            return {"text_head": MaskedLanguageHead(dim, vocab_size), "image_head": image}
        case "vqa":
            return {"pooler": Pooler(dim), "head": AnswerHead(dim, outputs("head.out.bias"))}
        case "nlvr2":
            return {"head": TwoImageHead(dim, outputs("head.out.bias"))}
        case "captioning":
            return {"text_head": MaskedLanguageHead(dim, vocab_size)}
        case "imagenet":
            return {"head": ClassHead(dim, outputs("head.out.bias"))}
        case "retrieval":
            return {"vision_head": EmbeddingHead(dim), "language_head": EmbeddingHead(dim)}
    return {}
