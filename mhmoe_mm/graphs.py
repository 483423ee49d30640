"""Trained encoders as graphs for other programs: ONNX, and what `torch.export` makes.

A graph has everything inside: it takes pixels and token ids as data modules hand them over, in any
batch and with texts of any length, and its weights are constants. What may be exported:

    pair, image, text          the network: what goes in to the hidden rows
    embed_image, embed_text    a retrieval model's vectors
    answer, classify           scores of all answers, of all classes

Every graph is run and compared with the model before it is handed out.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhmoe_mm.batches import VqaBatch, normalized
from mhmoe_mm.models.beit3 import BEiT3
from mhmoe_mm.moe.backends import Backend, EveryBackend
from mhmoe_mm.moe.experts import Experts
from mhmoe_mm.tasks.base import Task
from mhmoe_mm.tasks.image_classification import ImageClassification
from mhmoe_mm.tasks.retrieval import Retrieval
from mhmoe_mm.tasks.vqa import VQA

KINDS = {"onnx": ".onnx", "torch": ".pt2"}
"""What graphs are written as, and how their files end."""
BACKENDS: dict[str, Callable[[], Backend]] = {"every": EveryBackend}
"""What can carry out a sparse layer in a graph."""
TOLERANCE = 1e-4
CHECKED_BATCHES = (1, 3, 5)
MAX_CHECKED = 64
"""Longest text that graphs are compared with."""
TRACED = (2, 5)
"""Batch and length of text that a graph is made from; neither stays in it."""
REASON_AT_MOST = 300
"""Characters of what tracers have to say."""
PIXEL, TEXT = ("pixel",), ("token", "pad")


class Part(NamedTuple):
    """Something to export."""

    inputs: tuple[str, ...]
    output: str
    axes: tuple[str, ...]
    """Of the output, behind the batch."""
    of: type[Task] | None
    """The task that it belongs to; None: any encoder."""
    run: Callable[..., Tensor]
    """From the task, or the network where `of` is None, and the inputs to the output."""


def _answers(task: VQA, pixel: Tensor, token: Tensor, pad: Tensor) -> Tensor:
    some = pixel.shape[0]
    unknown = pixel.new_zeros((some, 1), dtype=torch.float32)
    valid = pixel.new_ones((some,), dtype=torch.bool)
    return task.scores(VqaBatch(pixel, token, pad, unknown, [], valid, []))[0].sigmoid()


PARTS = {
    "pair": Part(
        (*PIXEL, *TEXT), "hidden", ("image and text", "dim"), None,
        lambda net, pixel, token, pad: net(normalized(pixel), token, pad).hidden,
    ),
    "image": Part(
        PIXEL, "hidden", ("patches + 1", "dim"), None,
        lambda net, pixel: net(normalized(pixel), None).hidden,
    ),
    "text": Part(
        TEXT, "hidden", ("seq", "dim"), None,
        lambda net, token, pad: net(None, token, pad).hidden,
    ),
    "embed_image": Part(
        PIXEL, "vector", ("dim",), Retrieval, lambda task, pixel: task.embed_image(pixel)[0]
    ),
    "embed_text": Part(
        TEXT, "vector", ("dim",), Retrieval,
        lambda task, token, pad: task.embed_text(token, pad)[0],
    ),
    "answer": Part((*PIXEL, *TEXT), "score", ("answers",), VQA, _answers),
    "classify": Part(
        PIXEL, "probability", ("classes",), ImageClassification,
        lambda task, pixel: task.scores(normalized(pixel))[0].softmax(dim=1),
    ),
}  # fmt: skip


class Checked(NamedTuple):
    """How far a graph's outputs are from the model's."""

    difference: float
    """The largest, absolute."""
    batches: list[int]
    lengths: list[int]
    """Of texts; empty where the part reads none."""


class Graph(nn.Module):
    """A part of a model, called with tensors alone."""

    def __init__(self, part: Part, module: nn.Module):
        super().__init__()
        self.part, self.module = part, module

    def forward(self, *given: Tensor) -> Tensor:
        return self.part.run(self.module, *given)


def default_parts(task: Task | None) -> list[str]:
    """What is exported unless asked for otherwise: a task's own parts, or an encoder's pair."""
    own = [name for name, part in PARTS.items() if part.of is not None and type(task) is part.of]
    return own or ["pair"]


def check_parts(parts: Sequence[str], task: Task | None) -> None:
    """Refuse what a model does not have; ValueError says what it has."""
    for name in parts:
        part = PARTS.get(name)
        if part is None:
            raise ValueError(f"There is no part {name}: choose from {', '.join(PARTS)}.")
        if part.of is not None and type(task) is not part.of:
            kind = "a network alone" if task is None else type(task).__name__
            raise ValueError(f"{name} is a part of {part.of.__name__} models, and this is {kind}.")


def export_graph(
    name: str, net: BEiT3, task: Task | None, kind: str, backend: str | None, file: Path
) -> Checked:
    """Write one part of a model as a graph, and compare it with the model.

    Args:
        name: of `PARTS`.
        net: in evaluation mode, on the CPU, in float32.
        task: that it belongs to; None: the network stands alone.
        kind: of `KINDS`.
        backend: of `BACKENDS`; what carries out sparse layers, None where there are none.
        file: to be.

    Raises:
        ValueError: the network has sparse layers and no backend was named, or it cannot be
            exported, or the graph's outputs differ from the model's.
    """
    part = PARTS[name]
    graph = Graph(part, net if part.of is None or task is None else task).eval()
    check_backend(net, backend)
    checks = [
        _inputs(part, net, batch, length)
        for batch, length in zip(CHECKED_BATCHES, _lengths(net), strict=True)
    ]
    with torch.no_grad():
        wanted = [graph(*given) for given in checks]
        with _carried_out_by(net, backend):
            try:
                run = _written(graph, part, net, kind, file)
                found = [run(*given) for given in checks]
            except Exception as error:  # tracers raise many kinds, and long
                raise ValueError(f"{name} cannot be exported ({_reason(error)}).") from error
    pairs = list(zip(found, wanted, strict=True))
    difference = max((one - other).abs().max().item() for one, other in pairs)
    if not all(torch.allclose(*pair, rtol=TOLERANCE, atol=TOLERANCE) for pair in pairs):
        raise ValueError(
            f"The graph of {name} differs from the model by {difference:.2g}, more than "
            f"{TOLERANCE:g}: a router that draws at random, or one whose choices hang by a digit, "
            "has no graph that says the same."
        )
    return Checked(
        difference, list(CHECKED_BATCHES), _lengths(net) if "token" in part.inputs else []
    )


def check_backend(net: nn.Module, backend: str | None) -> None:
    """Refuse sparse layers without a backend that graphs have; ValueError says which there are."""
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"No backend of graphs is called {backend}: choose {', '.join(BACKENDS)}.")
    if backend is None and (experts := _experts(net)):
        raise ValueError(
            f"The network has {len(experts)} sparse layers. What carries them out in training has "
            "sizes that graphs cannot have; --backend every computes all experts for every token, "
            f"here {max(e.num_experts for e in experts)} where few are chosen, with the same "
            "answers: name it if that is wanted."
        )


def described(name: str, net: BEiT3, checked: Checked, file: str) -> dict[str, Any]:
    """Inputs, output and check of a graph, as plain values."""
    part, size = PARTS[name], net.image_embedding.image_size
    kinds = {
        "pixel": {"dtype": "uint8", "shape": ["batch", 3, size, size]},
        "token": {"dtype": "int64", "shape": ["batch", "seq"]},
        "pad": {"dtype": "bool", "shape": ["batch", "seq"]},
    }
    return {
        "file": file,
        "inputs": {name: kinds[name] for name in part.inputs},
        "output": {"name": part.output, "dtype": "float32", "shape": ["batch", *part.axes]},
        "checked": checked._asdict(),
    }


def _reason(error: BaseException) -> str:
    """What is at the bottom of a chain of errors, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = " ".join(str(error).split())[:REASON_AT_MOST].rstrip(".")
    return f"{type(error).__name__}: {reason}"


@contextmanager
def _carried_out_by(net: nn.Module, backend: str | None) -> Iterator[None]:
    """The network's experts have another backend for a while."""
    before = [(experts, experts.backend) for experts in _experts(net)]
    try:
        if backend is not None:
            for experts, _ in before:
                experts.backend = BACKENDS[backend]()
        yield
    finally:
        for experts, own in before:
            experts.backend = own


def _experts(net: nn.Module) -> list[Experts]:
    return [module for module in net.modules() if isinstance(module, Experts)]


def _lengths(net: BEiT3) -> list[int]:
    longest = min(MAX_CHECKED, net.text_embedding.max_text)
    return [min(2, longest), max(longest // 2, 1), longest]


def _inputs(part: Part, net: BEiT3, batch: int, length: int) -> tuple[Tensor, ...]:
    """Drawn at random, with padding."""
    draw, size = torch.Generator().manual_seed(batch), net.image_embedding.image_size
    real = torch.randint(1, length + 1, (batch, 1), generator=draw)
    values = {
        "pixel": torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=draw),
        "token": torch.randint(0, net.vocab_size, (batch, length), generator=draw),
        "pad": torch.arange(length) >= real,
    }
    return tuple(values[name] for name in part.inputs)


def _written(graph: Graph, part: Part, net: BEiT3, kind: str, file: Path) -> Callable[..., Tensor]:
    """Trace, write, read again; what runs the file."""
    batch = torch.export.Dim("batch")
    seq = torch.export.Dim("seq", max=net.text_embedding.max_text)
    axes: dict[str, dict[int, Any]] = {
        "pixel": {0: batch}, "token": {0: batch, 1: seq}, "pad": {0: batch, 1: seq},
    }  # fmt: skip
    dynamic = (tuple(axes[name] for name in part.inputs),)
    given = _inputs(part, net, *TRACED)
    program = torch.export.export(graph, given, dynamic_shapes=dynamic)
    if kind == "torch":
        torch.export.save(program, file)
        return torch.export.load(file).module()
    return _written_onnx(program, part, dynamic, file)


def _written_onnx(
    program: torch.export.ExportedProgram, part: Part, dynamic: Any, file: Path
) -> Callable[..., Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 what torch writes ONNX with
    except ImportError as error:
        raise ValueError(
            f"ONNX needs {error.name}: pip install 'mhmoe-mm[onnx]', or choose --format torch"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # one name serves several
        written = torch.onnx.export(
            program,
            dynamic_shapes=dynamic,
            input_names=list(part.inputs),
            output_names=[part.output],
            dynamo=True,
            verbose=False,
        )
    assert written is not None
    written.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        feed = {name: value.numpy() for name, value in zip(part.inputs, given, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run
